//! Runs one job in a guest, with its console on the user's terminal.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use guest_link::{Input, Job, Work, job};

use crate::console::{Log, printable};
use crate::figures::{self, Figures};
use crate::initramfs::{Initramfs, parse_file_option};
use crate::machine::{Machine, pool_parameters};
use crate::options::{Kernel, RunOptions};
use crate::preset::Preset;
use crate::root::{self, Config};
use crate::session::Session;
use crate::size::Size;
use crate::terminal;
use crate::{network, packages, program, volume};

/// Exit status when the machine itself failed.
pub const MACHINE_FAILED: i32 = 125;

/// Where the built things are.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Our kernel.
    pub kernel: PathBuf,
    /// Debian's, when it was fetched.
    pub linux: Option<PathBuf>,
    /// Our Linux programs; `init` is among them.
    pub programs: PathBuf,
    /// The presets' files.
    pub presets: PathBuf,
    /// Busybox, when the host has one.
    pub busybox: Option<PathBuf>,
    /// A folder for logs and the initial RAM disk.
    pub scratch: PathBuf,
}

impl Parts {
    /// The parts below a folder where `cargo xtask build` left them.
    pub fn in_folder(folder: &Path) -> Parts {
        let linux = folder.join("linux/vmlinuz");
        Parts {
            kernel: folder.join("kernel.elf"),
            linux: linux.is_file().then_some(linux),
            programs: folder.join("programs"),
            presets: folder.join("presets"),
            busybox: ["/bin/busybox", "/usr/bin/busybox"]
                .map(PathBuf::from)
                .into_iter()
                .find(|p| p.is_file()),
            scratch: folder.to_path_buf(),
        }
    }

    /// The kernel that was asked for.
    pub fn kernel(&self, kernel: &Kernel) -> Result<PathBuf> {
        let path = match kernel {
            Kernel::Roundtable => self.kernel.clone(),
            Kernel::Linux => {
                self.linux.clone().context("Debian's kernel was not fetched yet: `cargo xtask setup` does")?
            }
            Kernel::File(path) => path.clone(),
        };
        if !path.is_file() {
            let hint = if *kernel == Kernel::Roundtable { ": `cargo xtask build` makes it" } else { "" };
            bail!("{}: there is no such kernel{hint}", path.display());
        }
        Ok(path)
    }
}

/// A new key for a guest's frames.
pub fn new_key() -> Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("/dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The environment that every job starts with.
pub fn base_environment() -> Vec<Vec<u8>> {
    // The guest's console is a terminal always; this is how a job learns that nobody watches the other end.
    let watched = io::stdout().is_terminal();
    let terminal = std::env::var("TERM").ok().filter(|_| watched).unwrap_or_else(|| "dumb".into());
    let base = ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "USER=root", &format!("TERM={terminal}")];
    let mut variables: Vec<_> = base.iter().map(|variable| variable.as_bytes().to_vec()).collect();
    // What says how the terminal may be used goes with it.
    for name in ["NO_COLOR", "COLORTERM"] {
        if let Some(value) = std::env::var_os(name).filter(|_| watched) {
            variables.push([name.as_bytes(), b"=", value.as_encoded_bytes()].concat());
        }
    }
    variables
}

/// Runs what the options describe, a preset or one job; gives the exit status for the shell.
pub fn run(options: &RunOptions, parts: &Parts) -> Result<i32> {
    if options.list {
        let list = Preset::list(&parts.presets)?;
        let width = list.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<_> = list.iter().map(|(name, about)| format!("{name:width$}  {about}\n")).collect();
        crate::output::file::write(&lines.concat(), None)?;
        return Ok(0);
    }
    let on_linux = options.beside_linux || options.kernel == Kernel::Linux;
    if let Some(volume) = options.volumes.first().filter(|_| on_linux) {
        bail!(
            "--volume works on our kernel only: Debian's cloud kernel has no 9p file system. On Linux give \
             --file {0}:{1}, which puts a copy of the folder into the guest",
            volume.host.display(),
            volume.guest
        );
    }
    match Preset::find(options, &parts.presets)? {
        Some(preset) => run_preset(&preset, options, parts),
        None if options.beside_linux => bail!("--beside-linux is for presets; --list names them"),
        None => run_job(options, parts).map(|(status, _)| status),
    }
}

/// Runs a preset, beside Linux when that is asked for, and prints the figures as a table.
fn run_preset(preset: &Preset, given: &RunOptions, parts: &Parts) -> Result<i32> {
    let mut kernels = vec![given.kernel.clone()];
    if given.beside_linux {
        kernels.push(Kernel::Linux);
    }
    let (worst, runs) = run_preset_on(&kernels, preset, given, parts)?;
    if runs.iter().any(|(_, figures)| !figures.is_empty()) {
        crate::output::file::write(&format!("\n{}\n", figures::table(&runs)), None)?;
    }
    Ok(worst)
}

/// Runs a preset on one kernel after the other; gives the worst of the exit statuses, and what each has printed.
pub fn run_preset_on(
    kernels: &[Kernel],
    preset: &Preset,
    given: &RunOptions,
    parts: &Parts,
) -> Result<(i32, Vec<(&'static str, Figures)>)> {
    let mut options = preset.apply(given, &parts.programs)?;
    let (mut runs, mut worst) = (Vec::new(), 0);
    for kernel in kernels {
        let name = match kernel {
            Kernel::Roundtable => "Roundtable",
            Kernel::Linux => "Linux",
            Kernel::File(_) => "this kernel",
        };
        if kernels.len() > 1 {
            eprintln!("roundtable: on {name}");
        }
        options.kernel = kernel.clone();
        let (status, figures) = run_for_figures(&options, parts)?;
        runs.push((name, figures));
        worst = worst.max(status);
        if status >= MACHINE_FAILED {
            // Whoever ends one run does not want another.
            break;
        }
    }
    Ok((worst, runs))
}

/// Runs one job; gives the exit status for the shell, and the figures that it printed.
pub fn run_for_figures(options: &RunOptions, parts: &Parts) -> Result<(i32, Figures)> {
    let (status, console) = run_job(options, parts)?;
    Ok((status, Figures::find(&printable(&console))))
}

/// Runs one job; gives the exit status for the shell, and what the console printed.
fn run_job(options: &RunOptions, parts: &Parts) -> Result<(i32, Vec<u8>)> {
    let interactive = terminal::is_interactive();
    let input = input_file()?;
    let job = Job {
        key: new_key()?,
        work: Work::Run { path: Vec::new(), arguments: Vec::new() },
        environment: base_environment(),
        directory: b"/".to_vec(),
        user: options.user.clone(),
        input: match &input {
            _ if interactive => Input::Terminal,
            Some(_) => Input::File,
            // Also for a terminal that types into a job whose output goes elsewhere: it stays in its own line
            // mode.
            None => Input::Relay,
        },
        window: terminal::window(),
        volumes: Vec::new(),
    };
    let (machine, job, _initrd) = prepare(options, parts, job, input)?;
    let mut log = Log::create(&parts.scratch.join("console.log"))?;
    let status = Session::new(options, &job, &machine, &mut log)?.run()?;
    let console = log.contents()?;
    if options.missing {
        let text = String::from_utf8_lossy(&console);
        let found = missing(&text);
        eprintln!("roundtable: {} things were asked for that the kernel has not:", found.len());
        found.iter().for_each(|what| eprintln!("  {what}"));
    }
    Ok((status, console))
}

/// What the kernel said that programs have missed, in the order of their names.
fn missing(console: &str) -> BTreeSet<&str> {
    let lines = console.lines().filter(|line| line.trim_start_matches('\r').starts_with('['));
    lines.filter_map(|line| Some(line.split_once("] missing: ")?.1.trim_end())).collect()
}

/// What is left of our standard input, when it is a file.
fn input_file() -> Result<Option<Vec<u8>>> {
    let stdin = io::stdin();
    let mode = rustix::fs::fstat(&stdin).map(|stat| stat.st_mode);
    if !mode.is_ok_and(|mode| rustix::fs::FileType::from_raw_mode(mode).is_file()) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    stdin.lock().read_to_end(&mut bytes).context("standard input")?;
    Ok(Some(bytes))
}

/// Writes the initial RAM disk; it is removed when the last value is dropped.
fn prepare(
    options: &RunOptions,
    parts: &Parts,
    mut job: Job,
    input: Option<Vec<u8>>,
) -> Result<(Machine, Job, tempfile::TempPath)> {
    let kernel = parts.kernel(&options.kernel)?;
    check_size(options, 0)?;
    volume::check(&options.volumes)?;
    let mut packed = if options.root.is_some() || !options.packages.is_empty() {
        pack_root(options, parts)?
    } else {
        pack_program(options, parts)?
    };
    let initramfs = &mut packed.initramfs;
    for file in &options.files {
        let (host, guest) = parse_file_option(file)?;
        // A program given as a file shall run too.
        if !host.is_dir() {
            initramfs.add_program(&guest, &host)?;
            continue;
        }
        for (library, user) in initramfs.add_folder(&guest, &host)? {
            eprintln!("roundtable: {library} is not on the host, which {} needs", user.display());
        }
    }
    if let Some(busybox) = parts.busybox.as_ref().filter(|_| options.root.is_none()) {
        initramfs.add_busybox(busybox)?;
    }
    job.work = Work::Run { path: packed.path.into_bytes(), arguments: packed.arguments };
    let config = packed.config;
    job.user = job.user.or(config.user.filter(|user| !user.is_empty()));
    if let Some(user) = &job.user {
        initramfs.check_user(user)?;
    }
    let directory = options.workdir.clone().or(config.working_dir.filter(|folder| !folder.is_empty()));
    job.directory = directory.unwrap_or_else(|| "/".into()).into_bytes();
    // The later of two values counts.
    let variables = config.env.into_iter().flatten().chain(options.environment.iter().cloned());
    job.environment.extend(variables.map(String::into_bytes));
    job.volumes = options.volumes.iter().enumerate().map(|(index, volume)| volume.for_job(index)).collect();
    if let Some(input) = input {
        initramfs.add_bytes(job::INPUT_PATH, 0o400, input);
    }
    let network = options.network();
    if network.is_some() {
        network::add_names(initramfs);
        if options.kernel == Kernel::Linux {
            network::add_modules(initramfs, &kernel)?;
        }
    }
    let init = parts.programs.join("init");
    let mut parameters = pool_parameters(options.pages_2m(), options.huge_1g);
    if options.root.is_some() {
        initramfs.set_job_beside(&init, &job)?;
        parameters.push(format!("rdinit={}", job::INIT_PATH));
    } else {
        initramfs.set_job(&init, &job)?;
    }
    let initrd = initramfs.write_temporary(&parts.scratch, false)?;
    let memory = check_size(options, initrd.metadata().map_or(0, |data| data.len()))?;
    if options.missing {
        parameters.push("missing=1".into());
    }
    parameters.extend(options.parameters.iter().cloned());
    let machine = Machine {
        kernel,
        initrd: initrd.to_path_buf(),
        cpus: options.cpus.get(),
        memory,
        nodes: options.nodes.get(),
        machine: options.machine.clone(),
        firmware: options.firmware.clone(),
        icount: options.icount,
        network,
        volumes: options.volumes.clone(),
        parameters,
    };
    Ok((machine, job, initrd))
}

/// The memory for the machine; an error with the line to type when what was asked for does not fit.
fn check_size(options: &RunOptions, files: u64) -> Result<Size> {
    /// QEMU's PC has no more.
    const MOST_CPUS: u32 = 255;
    /// `MAX_NODES` of the kernel.
    const MOST_NODES: u32 = 16;
    if options.cpus.get() > MOST_CPUS {
        bail!("the machine has {MOST_CPUS} CPUs at most: give --cpus {MOST_CPUS}");
    }
    let memory = options.memory(files);
    if options.nodes.get() > MOST_NODES {
        bail!("the kernel knows {MOST_NODES} memory nodes at most: give --nodes {MOST_NODES}");
    }
    let pages = options.huge_bytes();
    let needed = pages.saturating_add(files.saturating_mul(2));
    if needed >= memory.0 {
        let enough = RunOptions { memory: None, ..options.clone() }.memory(files);
        let what = match (pages, files) {
            (_, 0) => format!("huge pages of {}", Size(pages)),
            (0, _) => format!("files of {} while they are unpacked", Size(files)),
            _ => format!("huge pages of {} and files of {}", Size(pages), Size(files)),
        };
        bail!("{memory} of memory cannot hold {what}: give --memory {enough}");
    }
    Ok(memory)
}

/// A file system, and the command in it.
struct Packed {
    initramfs: Initramfs,
    path: String,
    arguments: Vec<Vec<u8>>,
    config: Config,
}

/// A program of the host's or one of ours, with what it needs.
fn pack_program(options: &RunOptions, parts: &Parts) -> Result<Packed> {
    let mut initramfs = Initramfs::new();
    let (name, arguments) = match options.program.split_first() {
        Some((name, rest)) => {
            let name = name.to_str().context("the program's name is not UTF-8")?;
            let rest = rest.iter().map(|argument| argument.as_encoded_bytes().to_vec());
            (name.to_string(), rest.collect::<Vec<_>>())
        }
        None => {
            let words = ["--processes", &options.sharers.to_string(), "--bytes", &options.size.0.to_string()]
                .map(str::to_string);
            let words = words.into_iter().chain(["--mount".to_string(), "/mnt/huge".to_string()]);
            let words = words.chain(options.base_pages.then(|| "--base-pages".to_string()));
            ("sharers".to_string(), words.map(String::into_bytes).collect())
        }
    };
    let program = program::find(&name, &parts.programs)?;
    initramfs.add_program(&program.guest, &program.host)?;
    let arguments = std::iter::once(name.into_bytes()).chain(arguments).collect();
    Ok(Packed { initramfs, path: program.guest, arguments, config: Config::default() })
}

/// A root file system or packages; the command is one in them.
fn pack_root(options: &RunOptions, parts: &Parts) -> Result<Packed> {
    let mut config = Config::default();
    let mut initramfs = Initramfs::new();
    if let Some(path) = &options.root {
        let root = root::read(path)?;
        initramfs = Initramfs::of_root(root.archive);
        config = root.config;
    }
    if !options.packages.is_empty() {
        initramfs.lay_over(packages::unpack(&options.packages, &parts.scratch.join("packages"))?);
        let name = options.user.as_deref().and_then(|user| user.split(':').next());
        if let Some(name) = name.filter(|name| name.parse::<u32>().is_err()) {
            initramfs.add_user(name)?;
        }
    }
    let own = || config.command().into_iter().map(String::into_bytes).collect::<Vec<_>>();
    let given = options.program.iter().map(|word| word.as_encoded_bytes().to_vec()).collect::<Vec<_>>();
    let arguments = if given.is_empty() { own() } else { given };
    let Some(path) = arguments.first() else {
        bail!("there is no command in it: name a program behind --, such as -- /bin/sh");
    };
    let path = String::from_utf8(path.clone()).context("the program's name is not UTF-8")?;
    Ok(Packed { initramfs, path, arguments, config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_found_among_other_lines() {
        let console = "[    1.5] 2 CPUs\nmissing: not ours\n[    2.0] missing: node: system call io_uring_setup\r\n\
            [    2.1] missing: java: /sys/x\n[    2.2] missing: java: /sys/x\n";
        let found: Vec<_> = missing(console).into_iter().collect();
        assert_eq!(found, ["java: /sys/x", "node: system call io_uring_setup"]);
    }
}
