//! How far the audit can see: a container and a /proc that hides processes show less, and do not say so by themselves.

use super::files;
use super::mounts::mounts;
use super::source::Source;

/// The number of the first PID namespace, the host's: fixed by the kernel (PROC_PID_INIT_INO).
const HOSTS: u64 = 0xefff_fffc;

/// Whether this program runs in a PID namespace of its own kin, as in a container: processes outside are not in /proc.
pub fn is_in_a_container(source: &Source) -> bool {
    files::namespace(source, "self", "pid").is_some_and(|namespace| namespace != HOSTS)
}

/// Whether /proc keeps other users' processes from this one (mount option hidepid).
pub fn are_others_hidden(source: &Source) -> bool {
    let mounts = source.text("proc/self/mountinfo").unwrap_or_default();
    // For root and for who may trace all, the option changes nothing: the first process is visible.
    hides(&mounts) && source.text("proc/1/status").is_none()
}

fn hides(mountinfo: &str) -> bool {
    // The last one lies over the others.
    let Some(of_proc) = mounts(mountinfo).rfind(|mount| mount.place == "/proc") else { return false };
    let mut options = of_proc.options.split(',');
    options.any(|option| option.strip_prefix("hidepid=").is_some_and(|value| !["0", "off"].contains(&value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_found_on_the_uppermost_mount() {
        let plain = "22 1 0:20 / /proc rw,nosuid - proc proc rw\n";
        assert!(!hides(plain) && !hides(""));
        for (options, hidden) in [
            ("rw,hidepid=invisible", true),
            ("rw,gid=4,hidepid=2", true),
            ("rw,hidepid=off", false),
            ("rw", false),
        ] {
            let over = format!("{plain}40 22 0:44 / /proc rw shared:9 - proc proc {options}\n");
            assert_eq!(hides(&over), hidden, "{options}");
        }
        assert!(!hides(&format!("40 1 0:44 / /mnt rw - proc proc rw,hidepid=2\n{plain}")));
    }
}
