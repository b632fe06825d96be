//! Writes a result to standard output, or to a file that readers see either as it was or as it is, whole.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes the text to the file by way of a new one beside it, or to standard output.
pub fn write(text: &str, output: Option<&Path>) -> Result<()> {
    let Some(path) = output else {
        return match io::stdout().lock().write_all(text.as_bytes()) {
            // A pager that was left.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context("standard output"),
        };
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The collector reads files that end in .prom; this one does not, and begins with a dot.
    let mut file = tempfile::Builder::new()
        .prefix(".roundtable-")
        .tempfile_in(folder)
        .with_context(|| folder.display().to_string())?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
    // The collector is another user.
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roundtable.prom");
        write("first, and longer\n", Some(&path)).unwrap();
        let old = std::fs::File::open(&path).unwrap();
        write("second\n", Some(&path)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(io::read_to_string(old).unwrap(), "first, and longer\n", "who has it open reads on");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert!(write("x", Some(&folder.path().join("no/such/folder.prom"))).is_err());
    }
}
