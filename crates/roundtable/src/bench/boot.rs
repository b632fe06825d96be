//! One boot with `latency` as its job, and the records that it prints.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use guest_link::record::Record;
use guest_link::{Decoder, Ending, Frame, Input, Item, Job, Work};

use super::Subject;
use crate::console::Log;
use crate::guest::{Event, Guest};
use crate::initramfs::Initramfs;
use crate::machine::Machine;
use crate::run::{Parts, base_environment, new_key};
use crate::signals::Signals;
use crate::size::Size;

/// How long a kernel may take to start its init, on a busy machine. Linux with counted instructions is slow.
const START: Duration = Duration::from_secs(300);
/// How long one may take to power off.
const POWER_OFF: Duration = Duration::from_secs(30);
/// How much of the console a failure shows.
const SHOWN_LINES: usize = 30;
/// The program.
const PROGRAM: &str = "latency";

/// A boot to make.
pub struct Boot<'a> {
    subject: &'a Subject,
    name: &'static str,
    arguments: Vec<String>,
    cpus: u32,
    memory: Size,
    icount: bool,
    limit: Duration,
}

impl<'a> Boot<'a> {
    /// Two CPUs: times and memory.
    pub fn times(subject: &'a Subject, arguments: Vec<String>, limit: Duration) -> Boot<'a> {
        // 10,000 processes on Linux, and 2 GiB of huge pages.
        Boot { subject, name: "times", arguments, cpus: 2, memory: Size::gibibytes(6), icount: false, limit }
    }

    /// One CPU whose clock counts instructions.
    pub fn paths(subject: &'a Subject) -> Boot<'a> {
        let arguments = ["--parts", "path,basics"].map(str::to_string).to_vec();
        let (memory, limit) = (Size::gibibytes(1), Duration::from_secs(240));
        Boot { subject, name: "paths", arguments, cpus: 1, memory, icount: true, limit }
    }

    /// The same, for what operations cost beside so many sharers.
    pub fn counts(subject: &'a Subject, sharers: &str) -> Boot<'a> {
        let arguments =
            ["--parts", "cost", "--cost-sharers", sharers, "--runs", "3"].map(str::to_string).to_vec();
        let (memory, limit) = (Size::gibibytes(3), Duration::from_secs(600));
        Boot { subject, name: "counts", arguments, cpus: 1, memory, icount: true, limit }
    }

    fn machine(&self, initrd: std::path::PathBuf) -> Machine {
        // Messages of the kernel must not fall into records.
        let mut parameters = vec!["quiet".to_string(), "loglevel=1".to_string()];
        parameters.extend(self.subject.parameters.iter().cloned());
        Machine {
            kernel: self.subject.kernel.clone(),
            initrd,
            cpus: self.cpus,
            memory: self.memory,
            nodes: 1,
            machine: None,
            firmware: None,
            icount: self.icount,
            network: None,
            volumes: Vec::new(),
            parameters,
        }
    }

    /// QEMU's command line without the paths.
    pub fn machine_line(&self) -> String {
        let Boot { cpus, memory, .. } = self;
        format!("qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp {cpus} -m {memory}")
    }

    /// Boots, and gives each record to `take`. The result is what went wrong, if anything.
    pub fn run(
        &self,
        parts: &Parts,
        signals: &Signals,
        mut take: impl FnMut(&Record),
    ) -> Result<Option<String>> {
        let mut initramfs = Initramfs::new();
        let guest_path = format!("/bin/{PROGRAM}");
        initramfs.add_program(&guest_path, &parts.programs.join(PROGRAM))?;
        let arguments = std::iter::once(PROGRAM.to_string()).chain(self.arguments.iter().cloned());
        let job = Job {
            key: new_key()?,
            work: Work::Run {
                path: guest_path.into_bytes(),
                arguments: arguments.map(String::into_bytes).collect(),
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
        let log = format!("logs/bench-{}-{}.log", self.subject.name, self.name);
        let mut log = Log::create(&parts.scratch.join(log))?;
        let mut guest = Guest::start(self.machine(initrd.to_path_buf()).command())?;
        let mut decoder = Decoder::new(&job.key);
        let mut deadline = Instant::now() + START;
        let mut ending = None;
        let mut lines = Lines::default();
        let why = loop {
            match guest.wait(signals, Some(deadline), None)? {
                Event::Output(bytes) => {
                    for item in decoder.feed(&bytes) {
                        match item {
                            Item::Text(text) => {
                                log.add(&text)?;
                                lines.feed(&text, &mut take);
                            }
                            Item::Frame(Frame::Start) => {
                                // What the boot left behind does not belong to the first line.
                                lines.unfinished.clear();
                                deadline = Instant::now() + self.limit;
                            }
                            Item::Frame(Frame::Exit(end)) => {
                                ending = Some(end);
                                deadline = Instant::now() + POWER_OFF;
                            }
                            Item::Frame(_) => {}
                        }
                    }
                }
                Event::Closed => break None,
                Event::Deadline if ending.is_some() => break Some("the machine did not power off"),
                Event::Deadline => break Some("it did not come to its end in time"),
                Event::Signal(signal) => {
                    guest.finish()?;
                    bail!("ended by signal {signal}");
                }
                Event::Input | Event::Terminal(_) => {}
            }
        };
        let (status, errors) = match why {
            None => guest.reap()?,
            Some(_) => guest.finish()?,
        };
        let why = match (why, ending) {
            (Some(why), _) => why.to_string(),
            (None, Some(Ending::Code(0))) if lines.complete() => return Ok(None),
            (None, Some(Ending::Code(0))) => lines.count(),
            (None, Some(ending)) => format!("the program ended with {ending}"),
            (None, None) if !status.success() => format!("QEMU ended with {status}: {errors}"),
            (None, None) => "the machine went down".to_string(),
        };
        Ok(Some(format!("{}: {why}\n{}", self.name, log.last_lines(SHOWN_LINES))))
    }
}

/// Takes the console apart into lines, and the records among them.
#[derive(Default)]
struct Lines {
    unfinished: Vec<u8>,
    taken: u32,
    announced: Option<u32>,
}

impl Lines {
    fn feed(&mut self, text: &[u8], take: &mut impl FnMut(&Record)) {
        self.unfinished.extend_from_slice(text);
        while let Some(end) = self.unfinished.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            match Record::parse(&String::from_utf8_lossy(&line)) {
                Some(Record::End { records }) => self.announced = Some(records),
                Some(record) => {
                    self.taken += 1;
                    take(&record);
                }
                None => {}
            }
        }
    }

    /// Whether all records came that the program has printed.
    fn complete(&self) -> bool {
        self.announced == Some(self.taken)
    }

    fn count(&self) -> String {
        match self.announced {
            Some(announced) => format!("{} of {announced} records came", self.taken),
            None => "the last record did not come".to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_however_the_console_is_cut_and_none_gets_lost_unseen() {
        let record = Record::Note { text: "a".into() };
        let text = format!("noise\r\n{}{}half", record.line(), Record::End { records: 1 }.line());
        for size in [1, 7, text.len()] {
            let mut lines = Lines::default();
            let mut taken = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                lines.feed(piece, &mut |record| taken.push(record.clone()));
            }
            assert_eq!(taken, std::slice::from_ref(&record));
            assert!(lines.complete());
        }
        let mut lines = Lines::default();
        lines.feed(Record::End { records: 2 }.line().as_bytes(), &mut |_| {});
        assert!(!lines.complete());
    }
}
