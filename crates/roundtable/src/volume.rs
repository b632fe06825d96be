//! Folders of the host in the guest: QEMU's 9p server, which lets the guest see nothing beside them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use guest_link::job;
use rustix::fs::{Access, access};

/// As many as the machine's bus has room for beside its other devices.
const MOST: usize = 16;

/// A folder of the host, and where the guest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The folder.
    pub host: PathBuf,
    /// The path in the guest, from the root on.
    pub guest: String,
    /// Nothing in it may be changed from the guest.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let explain = || format!("{text:?} is not HOST:GUEST or HOST:GUEST:ro");
        let (places, read_only) = match text.rsplit_once(':') {
            Some((places, "ro")) => (places, true),
            Some((places, "rw")) => (places, false),
            _ => (text, false),
        };
        let (host, guest) = places.rsplit_once(':').ok_or_else(explain)?;
        if host.is_empty() || guest.is_empty() {
            return Err(explain());
        }
        if !guest.starts_with('/') {
            return Err(format!("the guest's path {guest:?} does not begin with a slash"));
        }
        // One place has one name.
        let guest = guest
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .fold(String::new(), |path, part| path + "/" + part);
        if guest.is_empty() {
            return Err("a volume cannot be the guest's root; --root takes a folder as that".into());
        }
        Ok(Volume { host: host.into(), guest, read_only })
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { ":ro" } else { "" };
        write!(f, "{}:{}{access}", self.host.display(), self.guest)
    }
}

/// An error that says what to do when one of the folders cannot be shown.
pub fn check(volumes: &[Volume]) -> Result<()> {
    ensure!(volumes.len() <= MOST, "the machine has room for {MOST} volumes: give fewer --volume");
    for (index, volume) in volumes.iter().enumerate() {
        volume.check()?;
        if volumes[..index].iter().any(|other| other.guest == volume.guest) {
            bail!("--volume {volume}: another volume is at {} already", volume.guest);
        }
    }
    Ok(())
}

impl Volume {
    fn check(&self) -> Result<()> {
        let host = self.host.display();
        if !self.host.exists() {
            bail!("--volume {self}: there is no folder {host} on this machine; mkdir -p {host} makes it");
        }
        if !self.host.is_dir() {
            let guest = &self.guest;
            bail!(
                "--volume {self}: {host} is no folder; give the folder that it is in, or --file {host}:{guest}, \
                 which puts a copy into the guest"
            );
        }
        if access(&self.host, Access::READ_OK | Access::EXEC_OK).is_err() {
            bail!("--volume {self}: you may not read {host}; chmod or chown it");
        }
        if !self.read_only && access(&self.host, Access::WRITE_OK).is_err() {
            bail!(
                "--volume {self}: you may not write to {host}; give --volume {self}:ro, or chmod or chown it"
            );
        }
        Ok(())
    }

    fn tag(index: usize) -> String {
        format!("volume{index}")
    }

    /// QEMU's words for it. Files are what they are on the host, links too: QEMU gives those that the guest makes to the guest's user if it
    /// may, and leaves them to its own user if not.
    pub fn arguments(&self, index: usize) -> Vec<OsString> {
        let tag = Self::tag(index);
        // QEMU splits its options at commas.
        let path: Vec<&[u8]> = self.host.as_os_str().as_bytes().split(|byte| *byte == b',').collect();
        let access = if self.read_only { ",readonly=on" } else { "" };
        let mut folder = OsString::from(format!("local,id={tag},path="));
        folder.push(OsString::from_vec(path.join(&b",,"[..])));
        folder.push(format!(",security_model=none,multidevs=remap{access}"));
        let device = format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}");
        [OsStr::new("-fsdev"), &folder, OsStr::new("-device"), OsStr::new(&device)]
            .map(OsString::from)
            .to_vec()
    }

    /// What init is told of it.
    pub fn for_job(&self, index: usize) -> job::Volume {
        let user = rustix::process::geteuid();
        // Root can give files to anybody.
        let owner = (!user.is_root()).then(|| (user.as_raw(), rustix::process::getegid().as_raw()));
        let path = self.guest.clone().into_bytes();
        job::Volume { tag: Self::tag(index), path, read_only: self.read_only, owner }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_two_paths_and_perhaps_a_word() {
        let parse = |text: &str| text.parse::<Volume>();
        let data = Volume { host: "/srv/data".into(), guest: "/data".into(), read_only: false };
        assert_eq!(parse("/srv/data:/data"), Ok(data.clone()));
        assert_eq!(parse("/srv/data:/data:rw"), Ok(data.clone()));
        assert_eq!(parse("/srv/data:/data:ro"), Ok(Volume { read_only: true, ..data }));
        assert_eq!(parse("./a:b:/c").unwrap().host, PathBuf::from("./a:b"));
        for text in ["", "/data", "/data:", ":/data", "/a:b", "/a:/", "/a://", "/a:ro"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn qemu_reads_the_folder_as_one_word() {
        let mut volume: Volume = "/a,b:/c:ro".parse().unwrap();
        assert_eq!(
            volume.arguments(3).join(OsStr::new(" ")),
            "-fsdev local,id=volume3,path=/a,,b,security_model=none,multidevs=remap,readonly=on \
             -device virtio-9p-pci,fsdev=volume3,mount_tag=volume3"
        );
        volume.host = OsStr::from_bytes(b"/not\xff,utf8").into();
        assert!(volume.arguments(0)[1].as_bytes().starts_with(b"local,id=volume0,path=/not\xff,,utf8,"));
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let why = |text: String| format!("{:#}", check(&[text.parse().unwrap()]).unwrap_err());
        assert!(why(format!("{path}/missing:/data")).contains(&format!("mkdir -p {path}/missing")));
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(why(format!("{path}/file:/data")).contains(&format!("--file {path}/file:/data")));
        let at = |guest: &str| format!("{path}:{guest}").parse::<Volume>().unwrap();
        assert!(check(&[at("/data")]).is_ok());
        for same in ["/data", "/data/", "//data", "/./data"] {
            assert!(check(&[at("/data"), at(same)]).is_err(), "{same}");
        }
    }
}
