//! Finds a program on the host and what it needs to run.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lddtree::DependencyAnalyzer;

/// A program of the host and its place in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file on the host.
    pub host: PathBuf,
    /// Its path in the guest.
    pub guest: String,
}

/// Finds what the user named: a path, one of our own programs, or something in the PATH.
pub fn find(name: &str, ours: &Path) -> Result<Program> {
    if name.contains('/') {
        let host = std::path::absolute(name).with_context(|| name.to_string())?;
        if !host.is_file() {
            bail!("{name}: there is no such file on the host");
        }
        let guest = clean(&host)?;
        return Ok(Program { host, guest });
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(ours.to_path_buf()).chain(env::split_paths(&path));
    for folder in folders {
        let host = folder.join(name);
        if fs::metadata(&host).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0) {
            // Programs of the host find what belongs to them by where they are.
            let guest =
                if folder == ours { format!("/bin/{name}") } else { clean(&std::path::absolute(&host)?)? };
            return Ok(Program { host, guest });
        }
    }
    let hint = if name == "busybox" { ": install busybox-static, or another static busybox" } else { "" };
    bail!("{name}: neither one of our programs ({}) nor in the PATH{hint}", ours.display())
}

/// An absolute path without `.` and `..`, as the guest has it.
fn clean(path: &Path) -> Result<String> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            part => out.push(part),
        }
    }
    Ok(out.to_str().with_context(|| format!("{}: not UTF-8", path.display()))?.to_string())
}

/// What a program needs besides itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files of the host, by the names that they are looked for.
    pub files: Vec<PathBuf>,
    /// Libraries that are not on the host.
    pub missing: Vec<String>,
}

/// What a program needs: nothing for a static one; the interpreter and all libraries for a dynamic one; the
/// interpreter and its needs for a script. Libraries are looked for as the loader does, and beside the
/// program.
pub fn needs(host: &Path) -> Result<Needs> {
    let head = read_head(host).with_context(|| host.display().to_string())?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let interpreter = String::from_utf8_lossy(line);
        let interpreter = interpreter.split_whitespace().next().unwrap_or_default().to_string();
        let path = PathBuf::from(&interpreter);
        if !path.is_file() {
            bail!("{}: its interpreter {interpreter} is not on the host", host.display());
        }
        let mut out = needs(&path)?;
        out.files.push(path);
        return Ok(out);
    }
    if !head.starts_with(b"\x7fELF") {
        // The guest says what it thinks of it: ENOEXEC.
        return Ok(Needs::default());
    }
    let real = fs::canonicalize(host).with_context(|| host.display().to_string())?;
    let beside = real.parent().map(Path::to_path_buf).unwrap_or_default();
    let tree = DependencyAnalyzer::default()
        .add_library_path(beside)
        .analyze(&real)
        .with_context(|| format!("{}: not an ELF file that can be read", host.display()))?;
    let mut out = Needs::default();
    out.files.extend(tree.interpreter.map(PathBuf::from));
    for library in tree.libraries.into_values() {
        // At the path where the loader looks for it: the name that is asked for, not the link's end.
        match library.realpath {
            Some(_) => out.files.push(library.path),
            None => out.missing.push(library.name),
        }
    }
    out.files.sort();
    out.files.dedup();
    out.missing.sort();
    Ok(out)
}

/// Whether a file is of the kind that has libraries.
pub fn is_elf(path: &Path) -> bool {
    read_head(path).is_ok_and(|head| head.starts_with(b"\x7fELF"))
}

fn read_head(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut head = Vec::new();
    fs::File::open(path)?.take(256).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_brings_its_interpreter_and_libc() {
        let this = env::current_exe().unwrap();
        let needs = needs(&this).unwrap();
        let has = |part: &str| {
            needs.files.iter().any(|file| file.to_string_lossy().contains(part) && file.is_file())
        };
        assert!(needs.missing.is_empty(), "{needs:?}");
        assert!(has("ld-linux") || has("ld-musl"), "{needs:?}");
        assert!(has("libc.") || has("ld-musl"), "{needs:?}");
    }

    #[test]
    fn a_script_brings_its_interpreter() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        fs::write(&script, "#!/bin/sh -e\nexit 0\n").unwrap();
        assert!(needs(&script).unwrap().files.contains(&PathBuf::from("/bin/sh")));
        fs::write(&script, "#!/no/such/thing\n").unwrap();
        assert!(needs(&script).is_err());
    }

    #[test]
    fn a_bare_name_is_ours_before_it_is_the_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("sh");
        fs::write(&ours, "").unwrap();
        assert_ne!(find("sh", folder.path()).unwrap().host, ours, "not executable");
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o755)).unwrap();
        let found = find("sh", folder.path()).unwrap();
        assert_eq!(found, Program { host: ours, guest: "/bin/sh".into() });
        assert!(find("surely-no-such-program", folder.path()).is_err());
        assert!(find("./surely-no-such-program", folder.path()).is_err());
    }

    #[test]
    fn a_path_is_the_same_in_the_guest() {
        let found = find("/bin/../bin/sh", Path::new("/nowhere")).unwrap();
        assert_eq!(found.guest, "/bin/sh");
    }
}
