//! The set-up steps: each is visible, skipped when done, and says what to do by hand when it cannot be done.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use roundtable::machine::QEMU;

use crate::servers::Server;
use crate::{debian, linux, toolchain};

/// All steps, each with a line even when there is nothing to do.
pub fn all() -> Result<()> {
    let done = |what: &str| eprintln!("{} {what}", console::style("    ready").green().for_stderr());
    qemu()?;
    done("QEMU, to run the kernel");
    host_libc()?;
    done("the C library's static part, to link the Linux programs");
    let toolchain = toolchain::find_or_install()?;
    done(&format!("Rust for the kernel's target, from {toolchain}"));
    busybox()?;
    done("busybox, a shell in the guest");
    linux::fetch()?;
    done("Debian's Linux kernel, to compare with");
    for server in [Server::PostgreSql, Server::MariaDb] {
        let place = server.find_or_fetch()?;
        done(&format!("{} below {}, to hold the audit against", server.name(), place.join("usr").display()));
    }
    Ok(())
}

/// QEMU for x86-64.
pub fn qemu() -> Result<()> {
    if debian::has_program(QEMU) {
        return Ok(());
    }
    debian::install(&["qemu-system-x86"], "QEMU, the machine that the kernel runs on").context(
        "QEMU cannot be installed here: install it by hand, so that `qemu-system-x86_64` is in the PATH",
    )
}

/// What links static programs for the host.
pub fn host_libc() -> Result<()> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64"];
    if folders.iter().any(|folder| Path::new(folder).join("libc.a").is_file()) {
        return Ok(());
    }
    debian::install(&["libc6-dev"], "static glibc, for the Linux programs").context(
        "static glibc cannot be installed here: install it (libc.a) by hand; Fedora calls it glibc-static",
    )
}

/// A static busybox; where it is.
pub fn busybox() -> Result<PathBuf> {
    let find =
        || ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.is_file());
    if let Some(path) = find() {
        return Ok(path);
    }
    let by_hand = "busybox cannot be installed here: put a static one at /bin/busybox by hand";
    debian::install(&["busybox-static"], "a shell and its programs in the guest").context(by_hand)?;
    find().context(by_hand)
}
