//! `cargo xtask image`: the kernel with an initial RAM disk as an image that PCs boot by themselves, or as Firecracker wants it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use roundtable::machine::QEMU;
use roundtable::run::Parts;
use roundtable::size::Size;
use serde_json::json;

use crate::build::{self, BuildOptions};
use crate::step::Step;
use crate::test::conversations::{busybox_init, shell_archive};
use crate::{debian, output_folder, setup};

/// What to make, and of what.
#[derive(Args, Clone, Debug)]
pub struct ImageOptions {
    #[command(flatten)]
    build: BuildOptions,

    /// Make an image that boots from a DVD, a disk or a stick, by BIOS and by UEFI
    #[arg(long, value_name = "FILE")]
    iso: Option<PathBuf>,

    /// Make a folder with kernel, initial RAM disk and machine.json for `firecracker --config-file`
    #[arg(long, value_name = "FOLDER")]
    firecracker: Option<PathBuf>,

    /// The initial RAM disk, a cpio archive, compressed by gzip or not [default: busybox, with a shell on the console]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Further kernel parameters
    #[arg(long, value_name = "PARAMETERS", default_value = "")]
    append: String,

    /// CPUs of Firecracker's machine
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,

    /// Memory of Firecracker's machine
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: Size,

    /// Boot an image with a test in it by SeaBIOS and by OVMF, in QEMU
    #[arg(long)]
    check: bool,
}

/// Makes what is asked for.
pub fn run(options: &ImageOptions) -> Result<i32> {
    ensure!(
        options.iso.is_some() || options.firecracker.is_some() || options.check,
        "nothing to make: give --iso FILE, --firecracker FOLDER, or --check"
    );
    let kernel = options.build.output();
    build::kernel(&options.build, &kernel)?;
    let mut parts = Parts::in_folder(&output_folder());
    parts.busybox = Some(setup::busybox()?);
    let initrd = match &options.initrd {
        Some(path) => fs::read(path).with_context(|| path.display().to_string())?,
        None => bytes(&parts, shell_archive)?,
    };
    let parameters = format!("console=ttyS0 {}", options.append);
    if let Some(path) = &options.iso {
        iso(&kernel, &initrd, parameters.trim(), path)?;
        println!("{}: boot it from a DVD, or copy it to a disk or a stick as it is", path.display());
    }
    if let Some(folder) = &options.firecracker {
        firecracker(options, &kernel, &initrd, parameters.trim(), folder)?;
        println!("firecracker --no-api --config-file {}", folder.join("machine.json").display());
    }
    if options.check {
        check(&kernel, &parts)?;
    }
    Ok(0)
}

fn bytes(
    parts: &Parts,
    archive: impl Fn(&Parts) -> Result<roundtable::initramfs::Initramfs>,
) -> Result<Vec<u8>> {
    let file = archive(parts)?.write_temporary(&parts.scratch, false)?;
    Ok(fs::read(&file)?)
}

/// What makes such images: GRUB for both kinds of firmware, and what it calls.
fn tools() -> Result<()> {
    const PACKAGES: [&str; 5] = ["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "xorriso", "mtools"];
    let has_platforms =
        ["i386-pc", "x86_64-efi"].iter().all(|platform| Path::new("/usr/lib/grub").join(platform).is_dir());
    if has_platforms && ["grub-mkrescue", "xorriso", "mformat"].iter().all(|name| debian::has_program(name)) {
        return Ok(());
    }
    debian::install(&PACKAGES, "GRUB, which loads the kernel by BIOS and UEFI")
        .context("GRUB cannot be installed here: install grub-mkrescue, both of its platforms, xorriso and mtools by hand")
}

/// An image with GRUB, which loads the kernel by Multiboot 2.
fn iso(kernel: &Path, initrd: &[u8], parameters: &str, to: &Path) -> Result<()> {
    tools()?;
    let step = Step::new("make an image", "GRUB, the kernel and its initial RAM disk");
    let scratch = tempfile::tempdir_in(output_folder())?;
    let boot = scratch.path().join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    // What addr2line wants is a file on the host.
    let mut strip = Command::new("objcopy");
    strip.arg("--strip-debug").arg(kernel).arg(boot.join("kernel.elf"));
    step.run(&mut strip, Duration::from_secs(60))?;
    fs::write(boot.join("initrd"), initrd)?;
    // A value in double quotes is one word for the kernel, and would not be for GRUB without these.
    let quoted = parameters.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
    fs::write(
        boot.join("grub/grub.cfg"),
        format!(
            "serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\nset timeout=0\n\
             menuentry Roundtable {{\n    multiboot2 /boot/kernel.elf {quoted}\n    module2 --nounzip /boot/initrd\n}}\n"
        ),
    )?;
    let mut make = Command::new("grub-mkrescue");
    make.arg("-o").arg(to).arg(scratch.path());
    step.run(&mut make, Duration::from_secs(120))?;
    Ok(())
}

/// Firecracker's configuration, by its documentation of `--config-file`: paths as they are on this machine.
fn firecracker(
    options: &ImageOptions,
    kernel: &Path,
    initrd: &[u8],
    parameters: &str,
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let folder = fs::canonicalize(folder)?;
    fs::copy(kernel, folder.join("kernel.elf"))?;
    fs::write(folder.join("initrd"), initrd)?;
    let machine = json!({
        "boot-source": {
            "kernel_image_path": folder.join("kernel.elf"),
            "initrd_path": folder.join("initrd"),
            "boot_args": format!("{parameters} reboot=k panic=-1"),
        },
        "drives": [],
        "machine-config": { "vcpu_count": options.cpus, "mem_size_mib": options.memory.0 >> 20 },
    });
    fs::write(folder.join("machine.json"), format!("{machine:#}\n"))?;
    Ok(())
}

/// Boots an image with both kinds of firmware; its test has to come to its end.
fn check(kernel: &Path, parts: &Parts) -> Result<()> {
    /// UEFI in an emulated machine takes its time.
    const LIMIT: Duration = Duration::from_secs(240);
    const OVMF: &str = "/usr/share/ovmf/OVMF.fd";
    setup::qemu()?;
    if !Path::new(OVMF).is_file() {
        debian::install(&["ovmf"], "UEFI for QEMU's machine")?;
    }
    let initrd = bytes(parts, |parts| busybox_init(parts, include_str!("test/outsider.sh")))?;
    let scratch = tempfile::tempdir_in(output_folder())?;
    let image = scratch.path().join("check.iso");
    iso(kernel, &initrd, "console=ttyS0 panic=-1 \"quoted=a b\"", &image)?;
    for (name, firmware) in [("SeaBIOS", None), ("OVMF", Some(OVMF))] {
        let step = Step::new(&format!("boot the image by {name}"), "it has to come to the end of its test");
        let mut machine = Command::new(QEMU);
        machine.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1G", "-nographic", "-no-reboot"]);
        machine.args(["-monitor", "none", "-serial", "stdio", "-net", "none"]);
        machine.args(firmware.iter().flat_map(|firmware| ["-bios", firmware]));
        machine.arg("-cdrom").arg(&image);
        let output = step.run(&mut machine, LIMIT)?;
        for expected in ["by Multiboot 2", "init is 1", "cpus 2", "file 4194304", "bye"] {
            ensure!(output.contains(expected), "{name}: {expected:?} does not appear in\n{output}");
        }
        println!("ok {name}");
    }
    Ok(())
}
