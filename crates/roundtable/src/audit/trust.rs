//! Whether a path leads only where root has put it: a command that root is told to type may name no other.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bits of a mode by which others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In such a folder only an entry's owner, and the folder's, may take it away.
const STICKY: u32 = 0o1000;

/// Whether an entry of this folder that is root's stays what it is: nobody else can put another into its place.
pub fn is_closed(folder: &Metadata) -> bool {
    let mode = folder.mode();
    folder.uid() == 0 && (mode & WRITABLE_BY_OTHERS == 0 || mode & STICKY != 0)
}

/// Whether a program and all folders above it are root's, now and when the command is typed.
pub fn is_roots_program(program: &Path) -> bool {
    let Some(folder) = program.parent() else { return false };
    // A link on the way could be another's; one in a folder of root's is root's if it says so.
    let is_straight = folder.canonicalize().is_ok_and(|real| real == folder);
    let is_roots_entry = program.symlink_metadata().is_ok_and(|entry| entry.uid() == 0);
    is_straight
        && is_roots_entry
        && are_closed(folder)
        && program.canonicalize().is_ok_and(|real| is_real(&real))
}

fn is_real(program: &Path) -> bool {
    let is_its_own =
        |file: Metadata| file.uid() == 0 && file.is_file() && file.mode() & WRITABLE_BY_OTHERS == 0;
    program.metadata().is_ok_and(is_its_own) && program.parent().is_some_and(are_closed)
}

/// Whether nobody but root can change where a path of such folders leads.
pub fn are_closed(folder: &Path) -> bool {
    folder.ancestors().all(|folder| folder.symlink_metadata().is_ok_and(|folder| is_closed(&folder)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_another_can_change_is_not_roots() {
        let place = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let folder = place.path().join("bin");
        create_dir(&folder).unwrap();
        let program = folder.join("psql");
        write(&program, "").unwrap();
        let mode = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode(&folder, 0o755);
        mode(&program, 0o755);
        assert_eq!(is_roots_program(&program), is_root);
        mode(&program, 0o775);
        assert!(!is_roots_program(&program));
        mode(&program, 0o755);
        for (open, is_root_still) in [(0o777, false), (0o1777, is_root), (0o775, false)] {
            mode(&folder, open);
            assert_eq!(is_roots_program(&program), is_root_still, "{open:o}");
        }
        mode(&folder, 0o755);
        let link = place.path().join("link");
        symlink(&folder, &link).unwrap();
        assert!(!is_roots_program(&link.join("psql")), "a folder by a link");
        assert!(!is_roots_program(&folder) && !is_roots_program(&folder.join("none")));
        if is_root {
            std::os::unix::fs::chown(&program, Some(65534), None).unwrap();
            assert!(!is_roots_program(&program));
        }
    }
}
