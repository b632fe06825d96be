//! Runs one job in a guest, with its console on the user's terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_link::{Decoder, Ending, Frame, Input, Item, Job, Work, job, relay};
use indicatif::ProgressBar;

use crate::console::{self, Log};
use crate::guest::{Event, Guest, Signals};
use crate::initramfs::{Initramfs, parse_file_option};
use crate::machine::{Machine, pool_parameters};
use crate::options::{Kernel, RunOptions};
use crate::program;
use crate::terminal::{self, Escape, Raw};

/// Exit status when the machine itself failed.
pub const MACHINE_FAILED: i32 = 125;
/// How long a guest may take to power off once its job is over.
const POWER_OFF: Duration = Duration::from_secs(20);

/// Where the built things are.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Our kernel.
    pub kernel: PathBuf,
    /// Debian's, when it was fetched.
    pub linux: Option<PathBuf>,
    /// Our Linux programs; `init` is among them.
    pub programs: PathBuf,
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
            Kernel::Linux => self.linux.clone().context("Debian's kernel was not fetched yet")?,
            Kernel::File(path) => path.clone(),
        };
        if !path.is_file() {
            bail!("{}: there is no such kernel", path.display());
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
    ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "USER=root", &format!("TERM={terminal}")]
        .map(|variable| variable.as_bytes().to_vec())
        .to_vec()
}

/// Runs the job that the options describe; gives the exit status for the shell.
pub fn run(options: &RunOptions, parts: &Parts) -> Result<i32> {
    let interactive = terminal::is_interactive();
    let input = input_file()?;
    let job = Job {
        key: new_key()?,
        work: Work::Run { path: Vec::new(), arguments: Vec::new() },
        environment: base_environment()
            .into_iter()
            .chain(options.environment.iter().map(|variable| variable.clone().into_bytes()))
            .collect(),
        directory: options.directory.clone().into_bytes(),
        input: match &input {
            _ if interactive => Input::Terminal,
            Some(_) => Input::File,
            // Also for a terminal that types into a job whose output goes elsewhere: it stays in its own line mode.
            None => Input::Relay,
        },
        cooked_output: interactive,
        window: terminal::window(),
    };
    let (machine, job, _initrd) = prepare(options, parts, job, input)?;
    let log = Log::create(&parts.scratch.join("console.log"))?;
    Session::new(options, &job, &machine, log)?.run()
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
    let (pages_2m, memory) = (options.pages_2m(), options.memory());
    if (pages_2m << 21).saturating_add(options.huge_1g << 30) >= memory.0 {
        bail!("{memory} of memory cannot hold the huge pages that were asked for");
    }
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
            ("sharers".to_string(), words.map(String::into_bytes).collect())
        }
    };
    let program = program::find(&name, &parts.programs)?;
    initramfs.add_program(&program.guest, &program.host)?;
    for file in &options.files {
        let (host, guest) = parse_file_option(file)?;
        // A program given as a file shall run too.
        if host.is_file() {
            initramfs.add_program(&guest, &host)?;
        } else {
            initramfs.add_file(&guest, &host)?;
        }
    }
    if let Some(busybox) = &parts.busybox {
        initramfs.add_busybox(busybox)?;
    }
    let arguments = std::iter::once(name.into_bytes()).chain(arguments).collect();
    job.work = Work::Run { path: program.guest.into_bytes(), arguments };
    if let Some(input) = input {
        initramfs.add_bytes(job::INPUT_PATH, 0o400, input);
    }
    initramfs.set_job(&parts.programs.join("init"), &job)?;
    let initrd = initramfs.write_temporary(&parts.scratch, false)?;
    let mut parameters = pool_parameters(pages_2m, options.huge_1g);
    parameters.extend(options.parameters.iter().cloned());
    let machine = Machine {
        kernel,
        initrd: initrd.to_path_buf(),
        cpus: options.cpus.get(),
        memory,
        machine: options.machine.clone(),
        icount: options.icount,
        parameters,
    };
    Ok((machine, job, initrd))
}

/// One guest on the terminal.
struct Session<'a> {
    options: &'a RunOptions,
    guest: Guest,
    signals: Signals,
    decoder: Decoder,
    log: Log,
    input: Input,
    raw: Option<Raw>,
    escape: Escape,
    /// Stuffed bytes that the guest may still be sent.
    window: usize,
    input_open: bool,
    started: bool,
    ending: Option<Ending>,
    spinner: ProgressBar,
    deadline: Option<Instant>,
}

/// Why a session is over.
enum Stop {
    Closed,
    Signal(i32),
    Deadline,
    User,
    /// Nobody reads our output any more.
    Output,
}

impl<'a> Session<'a> {
    fn new(options: &'a RunOptions, job: &Job, machine: &Machine, log: Log) -> Result<Session<'a>> {
        let signals = Signals::catch()?;
        let guest = Guest::start(machine.command())?;
        let spinner = ProgressBar::new_spinner();
        if !options.verbose {
            let name = match &options.kernel {
                Kernel::Roundtable => "Roundtable".into(),
                Kernel::Linux => "Debian's Linux".into(),
                Kernel::File(path) => path.display().to_string(),
            };
            spinner.set_message(format!("booting {name}"));
            spinner.enable_steady_tick(Duration::from_millis(100));
        }
        Ok(Session {
            options,
            guest,
            signals,
            decoder: Decoder::new(&job.key),
            log,
            input: job.input,
            raw: None,
            escape: Escape::default(),
            window: relay::WINDOW,
            input_open: true,
            started: false,
            ending: None,
            spinner,
            deadline: options.time_limit.map(|limit| Instant::now() + Duration::from_secs(limit)),
        })
    }

    fn run(mut self) -> Result<i32> {
        let stop = self.serve()?;
        self.spinner.finish_and_clear();
        drop(self.raw.take());
        let (status, errors) = match stop {
            Stop::Closed => self.guest.reap()?,
            _ => self.guest.finish()?,
        };
        let held = self.decoder.finish();
        self.log.add(&held)?;
        match (self.ending, stop) {
            (Some(ending), Stop::Closed) => Ok(self.report(ending)),
            (Some(ending), Stop::Deadline) => {
                self.report(ending);
                eprintln!("roundtable: the machine did not power off after the program ended");
                Ok(MACHINE_FAILED)
            }
            (None, Stop::Closed) if !status.success() || (!errors.is_empty() && !self.started) => {
                eprintln!("roundtable: QEMU failed ({status}): {errors}");
                Ok(MACHINE_FAILED)
            }
            (None, Stop::Closed) => {
                eprintln!("roundtable: the machine went down before the program ended");
                self.show_log();
                Ok(MACHINE_FAILED)
            }
            (None, Stop::Deadline) => {
                let limit = self.options.time_limit.unwrap_or_default();
                eprintln!("roundtable: stopped at the time limit of {limit} s");
                self.show_log();
                Ok(Ending::TimedOut.status())
            }
            (_, Stop::Signal(signal)) => Ok(128 + signal),
            // As a program on the host would end: by SIGPIPE, without a word.
            (_, Stop::Output) => Ok(128 + 13),
            (_, Stop::User) => {
                eprintln!("roundtable: the machine was ended by Ctrl-A X");
                Ok(130)
            }
        }
    }

    /// The status for the shell, with a word on endings that a status alone does not explain.
    fn report(&self, ending: Ending) -> i32 {
        if let Ending::NotStarted(errno) = ending {
            let error = io::Error::from_raw_os_error(errno);
            eprintln!("roundtable: the guest cannot run the program: {error}");
        }
        ending.status()
    }

    /// The end of the console, unless the user saw it already.
    fn show_log(&self) {
        if !self.options.verbose {
            eprintln!(
                "roundtable: the last lines of its console (all of it: {}):",
                self.log.path().display()
            );
            for line in self.log.last_lines(40).lines() {
                eprintln!("  | {line}");
            }
        }
    }

    fn serve(&mut self) -> Result<Stop> {
        let stdin = io::stdin();
        loop {
            let wants_input = self.started
                && self.ending.is_none()
                && self.input_open
                && self.window > 1
                && matches!(self.input, Input::Terminal | Input::Relay);
            let watched = wants_input.then_some(&stdin);
            match self.guest.wait(&self.signals, self.deadline, watched)? {
                Event::Output(bytes) => {
                    for item in self.decoder.feed(&bytes) {
                        if !self.take(item)? {
                            return Ok(Stop::Output);
                        }
                    }
                }
                Event::Input => {
                    if !self.forward_input()? {
                        return Ok(Stop::User);
                    }
                }
                Event::Closed => return Ok(Stop::Closed),
                Event::Signal(signal) => return Ok(Stop::Signal(signal)),
                Event::Deadline => return Ok(Stop::Deadline),
            }
        }
    }

    /// Handles one item of the console's stream; false when nobody reads our output.
    fn take(&mut self, item: Item) -> Result<bool> {
        match item {
            Item::Text(text) => {
                self.log.add(&text)?;
                if self.options.verbose || (self.started && self.ending.is_none()) {
                    let mut out = io::stdout().lock();
                    match out.write_all(&text).and_then(|()| out.flush()) {
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                        result => result.context("standard output")?,
                    }
                }
            }
            Item::Frame(Frame::Start) => {
                self.spinner.finish_and_clear();
                self.started = true;
                if self.input == Input::Terminal {
                    self.raw = Some(Raw::enter()?);
                }
            }
            Item::Frame(Frame::Exit(ending)) => {
                self.ending = Some(ending);
                drop(self.raw.take());
                self.deadline = Some(Instant::now() + POWER_OFF);
            }
            Item::Frame(Frame::Credit(bytes)) => self.window += bytes,
            Item::Frame(Frame::Note(note)) => {
                self.log.add(format!("init: {note}\r\n").as_bytes())?;
                if self.options.verbose {
                    eprintln!("init: {}", console::printable(note.as_bytes()));
                }
            }
            Item::Frame(Frame::TestStart { .. } | Frame::TestEnd { .. }) => {}
        }
        Ok(true)
    }

    /// Takes what our standard input has; false when the user wants the machine to end.
    fn forward_input(&mut self) -> Result<bool> {
        // Stuffing may double the bytes, and the window is counted in stuffed ones.
        let mut buffer = vec![0; if self.input == Input::Relay { self.window / 2 } else { 1024 }];
        // Straight from the descriptor: the standard library's own buffer would hide bytes from poll.
        let read = match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(read) => read,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
            // A background process may not read from its terminal; the job then has no input.
            Err(_) => 0,
        };
        buffer.truncate(read);
        if read == 0 {
            self.input_open = false;
        }
        if self.input == Input::Relay {
            let bytes = if read == 0 { relay::end().to_vec() } else { relay::stuff(&buffer) };
            self.window = self.window.saturating_sub(bytes.len());
            self.guest.send(&bytes);
        } else if let Some(bytes) = self.escape.filter(&buffer) {
            self.guest.send(&bytes);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}
