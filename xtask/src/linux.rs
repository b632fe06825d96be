//! Debian's Linux kernel, fetched and unpacked below target/, never installed.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::step::Step;
use crate::{debian, output_folder};

/// Names the newest kernel of the series in its one dependency.
const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// What it needs for the network card, each behind those that it needs itself.
const MODULES: [&str; 3] = [
    "kernel/net/core/failover.ko.xz",
    "kernel/drivers/net/net_failover.ko.xz",
    "kernel/drivers/net/virtio_net.ko.xz",
];

/// Makes sure that `target/roundtable/linux/vmlinuz` is there, and modules beside it.
pub fn fetch() -> Result<()> {
    let folder = output_folder().join("linux");
    let image = folder.join("vmlinuz");
    if image.is_file() && folder.join("modules").is_dir() {
        return Ok(());
    }
    unpack(&folder).with_context(|| {
        format!(
            "Debian's kernel cannot be fetched here: put the image of {META_PACKAGE} at {} by hand",
            image.display()
        )
    })
}

fn unpack(folder: &std::path::Path) -> Result<()> {
    let step = Step::new("fetch Debian's Linux 6.12 kernel", "to compare with; it is not installed");
    fs::create_dir_all(folder)?;
    let scratch = tempfile::tempdir_in(folder)?;
    let package = debian::dependencies(META_PACKAGE, &step)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .context("the package lists do not say which kernel it is")?;
    debian::download(&package, scratch.path(), &step)?;
    let archive = file_in(scratch.path(), |name| name.ends_with(".deb")).context("no package came")?;
    let tree = scratch.path().join("tree");
    step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree), Duration::from_secs(120))?;
    let image = file_in(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))
        .context("there is no kernel image in the package")?;
    let modules = tempfile::tempdir_in(folder)?;
    let release = package.trim_start_matches("linux-image-");
    for (number, module) in MODULES.iter().enumerate() {
        let name = module.rsplit('/').next().context("a module has a name")?;
        let from = tree.join("lib/modules").join(release).join(module);
        fs::copy(&from, modules.path().join(format!("{number}-{name}")))
            .with_context(|| from.display().to_string())?;
    }
    fs::write(folder.join("package"), format!("{package}\n"))?;
    fs::rename(image, folder.join("vmlinuz"))?;
    let place = folder.join("modules");
    if place.is_dir() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(modules.keep(), place)?;
    Ok(())
}

fn file_in(folder: &std::path::Path, wanted: impl Fn(&str) -> bool) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
}
