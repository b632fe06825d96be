//! A guest that runs one program, its console kept: for programs that may take the machine down.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use guest_link::{Decoder, Ending, Frame, Input, Item, Job, Work};
use roundtable::console::{Log, printable};
use roundtable::guest::{Event, Guest};
use roundtable::initramfs::Initramfs;
use roundtable::machine::Machine;
use roundtable::run::{Parts, base_environment, new_key};
use roundtable::signals::Signals;
use roundtable::size::Size;

/// How long a kernel may take to start its init, on a busy machine.
const START: Duration = Duration::from_secs(180);
/// How long one may take to power off.
const POWER_OFF: Duration = Duration::from_secs(60);

/// A boot to make.
#[derive(Clone, Debug)]
pub struct Boot {
    pub kernel: PathBuf,
    pub cpus: u32,
    pub memory: Size,
    pub icount: bool,
    pub parameters: Vec<String>,
    /// The program and its arguments: one of ours, or a path on the host that is the same in the guest.
    pub program: Vec<String>,
    /// Further arguments for QEMU.
    pub qemu: Vec<OsString>,
    /// Further files: the path in the guest, and the file or folder.
    pub files: Vec<(String, PathBuf)>,
    /// How long the console may say nothing.
    pub silence: Duration,
    /// How long the program may take altogether.
    pub limit: Duration,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The program did.
    Program(Ending),
    /// The machine went down before.
    Machine,
    /// The console said nothing for too long, or the machine did not power off.
    Hung,
    /// Its time was over.
    Limit,
}

/// What was seen of it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub end: End,
    /// All that the console printed, clean.
    pub text: String,
}

impl Boot {
    /// Boots. Each line of the program's goes to `line` at once; the console is kept in `log`.
    pub fn run(
        &self,
        parts: &Parts,
        signals: &Signals,
        log: &Path,
        mut line: impl FnMut(&str),
    ) -> Result<Seen> {
        let mut initramfs = Initramfs::new();
        let name = &self.program[0];
        let (host, guest) = match name.contains('/') {
            true => (PathBuf::from(name), name.clone()),
            false => (parts.programs.join(name), format!("/bin/{name}")),
        };
        if !self.files.iter().any(|(path, _)| *path == guest) {
            initramfs.add_program(&guest, &host)?;
        }
        for (path, file) in &self.files {
            initramfs.add_file(path, file)?;
        }
        if let Some(busybox) = &parts.busybox {
            initramfs.add_busybox(busybox)?;
        }
        let job = Job {
            key: new_key()?,
            work: Work::Run {
                path: guest.into_bytes(),
                arguments: self.program.iter().map(|word| word.clone().into_bytes()).collect(),
            },
            environment: base_environment(),
            directory: b"/tmp".to_vec(),
            user: None,
            input: Input::Null,
            window: None,
            volumes: Vec::new(),
        };
        initramfs.set_job(&parts.programs.join("init"), &job)?;
        let initrd = initramfs.write_temporary(&parts.scratch, false)?;
        let machine = Machine {
            kernel: self.kernel.clone(),
            initrd: initrd.to_path_buf(),
            cpus: self.cpus,
            memory: self.memory,
            nodes: 1,
            machine: None,
            firmware: None,
            network: None,
            volumes: Vec::new(),
            icount: self.icount,
            parameters: self.parameters.clone(),
        };
        let mut command = machine.command();
        command.args(&self.qemu);
        let mut log = Log::create(log)?;
        let mut guest = Guest::start(command)?;
        let mut decoder = Decoder::new(&job.key);
        let (mut started, mut ending) = (None, None);
        let mut deadline = Instant::now() + START;
        let (mut all, mut unfinished) = (Vec::new(), Vec::new());
        let over = loop {
            match guest.wait(signals, Some(deadline), None)? {
                Event::Output(bytes) => {
                    for item in decoder.feed(&bytes) {
                        match item {
                            Item::Text(text) => {
                                log.add(&text)?;
                                all.extend_from_slice(&text);
                                unfinished.extend_from_slice(&text);
                                while let Some(end) = unfinished.iter().position(|&byte| byte == b'\n') {
                                    let whole: Vec<u8> = unfinished.drain(..=end).collect();
                                    line(printable(&whole).trim_end_matches('\n'));
                                }
                            }
                            Item::Frame(Frame::Start) => started = Some(Instant::now()),
                            Item::Frame(Frame::Exit(end)) => {
                                ending = Some(end);
                                deadline = Instant::now() + POWER_OFF;
                            }
                            Item::Frame(_) => {}
                        }
                    }
                    if let Some(start) = started.filter(|_| ending.is_none()) {
                        deadline = (Instant::now() + self.silence).min(start + self.limit);
                    }
                }
                Event::Closed => break false,
                Event::Deadline => break true,
                Event::Signal(signal) => {
                    guest.finish()?;
                    bail!("ended by signal {signal}");
                }
                Event::Input | Event::Terminal(_) => {}
            }
        };
        let (status, errors) = if over { guest.finish()? } else { guest.reap()? };
        if !over && !status.success() {
            bail!("QEMU ended with {status}: {errors}");
        }
        let at_limit = started.is_some_and(|start: Instant| start.elapsed() >= self.limit);
        let end = match (over, ending) {
            (false, Some(ending)) => End::Program(ending),
            (false, None) => End::Machine,
            (true, None) if at_limit => End::Limit,
            (true, _) => End::Hung,
        };
        Ok(Seen { end, text: printable(&all) })
    }
}
