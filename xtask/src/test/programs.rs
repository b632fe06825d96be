//! Runs test programs in a guest, many in one boot.

use std::collections::{BTreeSet, HashSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_link::{Decoder, Ending, Frame, Input, Item, Job, Test};
use roundtable::console::{Log, printable};
use roundtable::guest::{Event, Guest};
use roundtable::initramfs::Initramfs;
use roundtable::network;
use roundtable::run::{Parts, base_environment, new_key};

use super::boots::Boot;
use super::host_folder::HostFolder;
use super::peer::Peer;
use super::report::Report;
use super::results::{Outcome, parse};
use super::{Bench, Subject, TestOptions, emulator};

/// How long a kernel may take to start its init, on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// How much longer than a test's own limit we wait for init to say so.
const GRACE: Duration = Duration::from_secs(30);
/// How much of a console is shown when a guest fails.
const SHOWN_LINES: usize = 60;

/// A test program and what to run of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestProgram {
    /// Its name, `test_...`.
    pub name: String,
    /// The subtests that it has to report.
    pub subtests: BTreeSet<String>,
    /// Whether these are all of them.
    pub whole: bool,
}

/// The test programs among the built ones, with the subtests that the filter leaves.
pub fn find(parts: &Parts, names: &BTreeSet<String>, options: &TestOptions) -> Result<Vec<TestProgram>> {
    let mut tests = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("test_")) {
        // They are Linux programs, and so is the host's kernel: it can tell what they have.
        let path = parts.programs.join(name);
        let output =
            Command::new(&path).arg("--list").output().with_context(|| path.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let all: BTreeSet<String> = text.split_whitespace().map(str::to_string).collect();
        if !output.status.success() || all.is_empty() {
            bail!("{name} --list names no subtests");
        }
        let count = all.len();
        let subtests: BTreeSet<_> =
            all.into_iter().filter(|subtest| options.wants(&format!("{name}::{subtest}"))).collect();
        if !subtests.is_empty() {
            let whole = subtests.len() == count;
            tests.push(TestProgram { name: name.clone(), subtests, whole });
        }
    }
    Ok(tests)
}

/// Runs the programs one after the other; after a machine that died or hung the rest in a new one.
pub fn run(
    bench: &Bench,
    boot: &Boot,
    subject: Subject,
    mut tests: Vec<&TestProgram>,
    report: &mut Report,
) -> Result<()> {
    let mut excused = 0;
    while !tests.is_empty() {
        if bench.is_out_of_time() {
            let names =
                tests.iter().flat_map(|test| test.subtests.iter().map(move |subtest| (test, subtest)));
            for (test, subtest) in names {
                report.fail(
                    &shown(boot, subject, &test.name, subtest),
                    "not run: the time budget is used up",
                    "",
                );
            }
            break;
        }
        let excuses = excused < emulator::MOST;
        match Batch::start(bench, boot, subject, &tests)?.watch(bench, excuses, report)? {
            Some(done) => _ = tests.drain(..done.max(1)),
            None => excused += 1,
        }
    }
    Ok(())
}

/// The name that a test is shown under.
fn shown(boot: &Boot, subject: Subject, test: &str, subtest: &str) -> String {
    format!("[{}] {test}::{subtest}", boot.label(subject))
}

/// One boot's run through a list of programs.
struct Batch<'a> {
    boot: &'a Boot,
    subject: Subject,
    tests: &'a [&'a TestProgram],
    guest: Guest,
    decoder: Decoder,
    log: Log,
    started: bool,
    ended: bool,
    /// How many programs are over.
    done: usize,
    current: Option<Current>,
    deadline: Instant,
    /// Removed with the batch.
    initrd: Option<tempfile::TempPath>,
    /// The other end of its network; it ends with the batch.
    peer: Option<Peer>,
    /// Its folder on the host; it goes with the batch.
    volume: Option<HostFolder>,
}

/// The program that runs now.
struct Current {
    missing: HashSet<String>,
    unfinished_line: Vec<u8>,
    output: Vec<u8>,
    failed: Vec<(String, String)>,
}

impl<'a> Batch<'a> {
    fn start(
        bench: &Bench,
        boot: &'a Boot,
        subject: Subject,
        tests: &'a [&'a TestProgram],
    ) -> Result<Batch<'a>> {
        let parts = &bench.parts;
        let mut initramfs = Initramfs::new();
        for test in tests {
            initramfs.add_program(&format!("/bin/{}", test.name), &parts.programs.join(&test.name))?;
        }
        for name in boot.helpers {
            initramfs.add_program(&format!("/bin/{name}"), &parts.programs.join(name))?;
        }
        if let Some(busybox) = &parts.busybox {
            initramfs.add_busybox(busybox)?;
        }
        let jobs = tests.iter().map(|test| {
            let name = test.name.clone().into_bytes();
            let chosen = test.subtests.iter().filter(|_| !test.whole);
            Test {
                path: format!("/bin/{}", test.name).into_bytes(),
                arguments: std::iter::once(name)
                    .chain(chosen.map(|subtest| subtest.clone().into_bytes()))
                    .collect(),
                limit: boot.limit,
            }
        });
        let volume = boot.volume.then(HostFolder::start).transpose()?;
        let job = Job {
            key: new_key()?,
            work: guest_link::Work::Tests(jobs.collect()),
            environment: base_environment(),
            directory: b"/tmp".to_vec(),
            user: None,
            input: Input::Null,
            window: None,
            volumes: volume.iter().flat_map(HostFolder::for_job).collect(),
        };
        if boot.network && subject == Subject::Linux {
            network::add_modules(&mut initramfs, &bench.kernel(subject)?)?;
        }
        initramfs.set_job(&parts.programs.join("init"), &job)?;
        let initrd = initramfs.write_temporary(&parts.scratch, false)?;
        let mut machine = boot.machine(bench.kernel(subject)?, initrd.to_path_buf(), subject);
        let peer = boot.network.then(Peer::start).transpose()?;
        if let Some(peer) = &peer {
            machine.network = Some(peer.network()?);
            machine.parameters.push(peer.parameter());
        }
        machine.volumes = volume.iter().flat_map(HostFolder::volumes).collect();
        let guest = Guest::start(machine.command())?;
        let mut batch = Batch::new(bench, boot, subject, tests, guest, &job.key)?;
        batch.initrd = Some(initrd);
        batch.peer = peer;
        batch.volume = volume;
        Ok(batch)
    }

    fn new(
        bench: &Bench,
        boot: &'a Boot,
        subject: Subject,
        tests: &'a [&'a TestProgram],
        guest: Guest,
        key: &str,
    ) -> Result<Batch<'a>> {
        Ok(Batch {
            boot,
            subject,
            tests,
            guest,
            decoder: Decoder::new(key),
            log: Log::create(&bench.log(boot.name, subject))?,
            started: false,
            ended: false,
            done: 0,
            current: None,
            deadline: bench.deadline(BOOT),
            initrd: None,
            peer: None,
            volume: None,
        })
    }

    fn shown(&self, test: &str, subtest: &str) -> String {
        shown(self.boot, self.subject, test, subtest)
    }

    /// Follows the console to the end; gives how many programs are done with, or nothing if the emulator
    /// failed Linux and is excused.
    fn watch(mut self, bench: &Bench, excuses: bool, report: &mut Report) -> Result<Option<usize>> {
        report.busy_with(&format!("{} on {}: booting", self.boot.name, self.subject.name()));
        let why = loop {
            match self.guest.wait(&bench.signals, Some(self.deadline), None)? {
                Event::Output(bytes) => {
                    for item in self.decoder.feed(&bytes) {
                        self.take(item, bench, report)?;
                    }
                }
                Event::Closed => break None,
                Event::Deadline => break Some("the machine hangs"),
                Event::Signal(signal) => {
                    self.guest.finish()?;
                    bail!("ended by signal {signal}");
                }
                Event::Input | Event::Terminal(_) => {}
            }
        };
        let (status, errors) = match why {
            None => self.guest.reap()?,
            Some(_) => self.guest.finish()?,
        };
        if self.ended && why.is_none() && self.done == self.tests.len() {
            return Ok(Some(self.done));
        }
        if excuses && !self.started {
            // More than is shown: the report of an Oops is longer, and its first line tells what it was.
            let console = self.log.last_lines(4 * SHOWN_LINES);
            if emulator::is_to_blame(self.subject, self.boot.name, &console, report) {
                return Ok(None);
            }
        }
        let why = match why {
            Some(_) if self.ended => "the machine did not power off".to_string(),
            Some(why) => why.to_string(),
            None if !status.success() || !errors.is_empty() => format!("QEMU ended with {status}: {errors}"),
            None => "the machine went down".to_string(),
        };
        Ok(Some(self.give_up(&why, report)))
    }

    fn take(&mut self, item: Item, bench: &Bench, report: &mut Report) -> Result<()> {
        match item {
            Item::Text(text) => {
                self.log.add(&text)?;
                if bench.verbose {
                    report.print(printable(&text).trim_end_matches('\n'));
                }
                if let Some(mut current) = self.current.take() {
                    current.output.extend_from_slice(&text);
                    current.unfinished_line.extend_from_slice(&text);
                    while let Some(end) = current.unfinished_line.iter().position(|&byte| byte == b'\n') {
                        let line: Vec<u8> = current.unfinished_line.drain(..=end).collect();
                        self.take_line(&mut current, &String::from_utf8_lossy(&line), report);
                    }
                    self.current = Some(current);
                }
            }
            Item::Frame(Frame::Start) => {
                self.started = true;
                self.deadline = bench.deadline(GRACE);
            }
            Item::Frame(Frame::TestStart { index }) => {
                let test = self.tests.get(index).context("the guest runs a test that it was not given")?;
                self.log.add(format!("--- {}\n", test.name).as_bytes())?;
                report.busy_with(&format!("{} on {}", test.name, self.subject.name()));
                self.current = Some(Current {
                    missing: test.subtests.iter().cloned().collect(),
                    unfinished_line: Vec::new(),
                    output: Vec::new(),
                    failed: Vec::new(),
                });
                self.deadline = bench.deadline(Duration::from_secs(self.boot.limit.into()) + GRACE);
            }
            Item::Frame(Frame::TestEnd { index, ending, milliseconds }) => {
                self.log.add(format!("--- {ending} after {milliseconds} ms\n").as_bytes())?;
                // A clock that counts instructions says nothing of what the run takes.
                if !self.boot.icount && self.tests.len() > 1 {
                    let part =
                        format!("    of it {} on {}", self.tests[index].name, self.boot.label(self.subject));
                    report.took(part, Duration::from_millis(milliseconds));
                }
                self.end_test(index, ending, report);
                self.deadline = bench.deadline(GRACE);
            }
            Item::Frame(Frame::Exit(_)) => {
                self.ended = true;
                self.deadline = bench.deadline(GRACE);
            }
            Item::Frame(Frame::Note(note)) => self.log.add(format!("init: {note}\n").as_bytes())?,
            Item::Frame(Frame::Credit(_)) => {}
        }
        Ok(())
    }

    fn take_line(&self, current: &mut Current, line: &str, report: &mut Report) {
        let Some(subtest) = parse(line) else { return };
        // Anything else that looks like a result is a child's idle talk.
        if !current.missing.remove(&subtest.name) {
            return;
        }
        let name = self.shown(&self.tests[self.done].name, &subtest.name);
        match subtest.outcome {
            Outcome::Passed => report.pass(&name, None),
            Outcome::Skipped(reason) => report.skip(&name, &reason),
            // Shown at the program's end, with all that it has printed.
            Outcome::Failed(reason) => current.failed.push((name, reason)),
        }
    }

    fn end_test(&mut self, index: usize, ending: Ending, report: &mut Report) {
        let Some(mut current) = self.current.take() else { return };
        let test = self.tests[index].name.clone();
        let last = std::mem::take(&mut current.unfinished_line);
        self.take_line(&mut current, &String::from_utf8_lossy(&last), report);
        self.done = index + 1;
        let ended = match ending {
            Ending::Code(0) if current.failed.is_empty() && current.missing.is_empty() => return,
            Ending::Code(code) => format!("the program ended with status {code}"),
            Ending::Signal(signal) => format!("the program was killed by signal {signal}"),
            Ending::NotStarted(errno) => {
                format!("the program does not start: {}", std::io::Error::from_raw_os_error(errno))
            }
            Ending::TimedOut => format!("the program took longer than {} s", self.boot.limit),
        };
        let mut missing: Vec<_> = current.missing.into_iter().collect();
        missing.sort();
        let mut failures = std::mem::take(&mut current.failed);
        for subtest in missing {
            failures.push((self.shown(&test, &subtest), format!("it did not report; {ended}")));
        }
        if failures.is_empty() {
            failures.push((self.shown(&test, "end"), format!("all subtests passed, but {ended}")));
        }
        let output = printable(&current.output);
        let count = failures.len();
        for (number, (name, reason)) in failures.into_iter().enumerate() {
            // The program's output once, below the last of its failures.
            report.fail(&name, &reason, if number + 1 == count { &output } else { "" });
        }
    }

    /// Reports the tests that the machine took down with it; gives how many programs are done with.
    fn give_up(mut self, why: &str, report: &mut Report) -> usize {
        let lines = self.log.last_lines(SHOWN_LINES);
        let place = self.log.path().display().to_string();
        let console = format!("{lines}\n(the whole console: {place})");
        if let Some(current) = self.current.take() {
            let test = self.tests[self.done];
            let mut failures = current.failed;
            let mut missing: Vec<_> = current.missing.into_iter().collect();
            missing.sort();
            failures.extend(
                missing.into_iter().map(|subtest| (self.shown(&test.name, &subtest), why.to_string())),
            );
            if failures.is_empty() {
                failures.push((self.shown(&test.name, "end"), why.to_string()));
            }
            let count = failures.len();
            for (number, (name, reason)) in failures.into_iter().enumerate() {
                report.fail(&name, &reason, if number + 1 == count { &console } else { "" });
            }
            return self.done + 1;
        }
        let place = format!("[{}] boot {}", self.subject.name(), self.boot.name);
        if self.done == self.tests.len() || self.started && self.done > 0 {
            // All that ran has reported; the machine itself is what failed.
            report.fail(&place, why, &console);
            return self.done;
        }
        report.fail(&place, &format!("{why} before the first test"), &console);
        for test in self.tests {
            for subtest in &test.subtests {
                report.fail(&self.shown(&test.name, subtest), "its machine does not boot", "");
            }
        }
        self.tests.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::boots::{Kernels, Selection, Work};
    use roundtable::signals::Signals;
    use roundtable::size::Size;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    const KEY: &str = "0011223344556677";

    fn program(name: &str, subtests: &[&str]) -> TestProgram {
        let subtests = subtests.iter().map(|name| name.to_string()).collect();
        TestProgram { name: name.into(), subtests, whole: true }
    }

    /// Plays a guest whose console prints this; gives how many programs are done with, and the counts.
    fn play(tests: &[&TestProgram], console: &[u8], then: &str) -> (usize, (u64, u64, u64)) {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("console");
        std::fs::write(&script, console).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("cat \"$0\"; {then}")]).arg(&script);
        let bench = Bench {
            parts: Parts { scratch: folder.path().to_path_buf(), ..Parts::in_folder(folder.path()) },
            signals: Signals::catch().unwrap(),
            verbose: false,
            // A guest that hangs is given up soon.
            end: Some(Instant::now() + Duration::from_secs(if then.is_empty() { 60 } else { 1 })),
            logs: Arc::new(AtomicUsize::new(0)),
        };
        let boot = Boot {
            name: "played",
            cpus: 1,
            memory: Size::gibibytes(1),
            nodes: 1,
            machine: None,
            firmware: None,
            icount: false,
            pools: (0, 0),
            network: false,
            volume: false,
            parameters: &[],
            limit: 60,
            kernels: Kernels::Both,
            own: None,
            helpers: &[],
            work: Work::Programs(Selection::Rest),
        };
        let mut report = Report::new();
        let guest = Guest::start(command).unwrap();
        let batch = Batch::new(&bench, &boot, Subject::Linux, tests, guest, KEY).unwrap();
        let done = batch.watch(&bench, true, &mut report).unwrap();
        (done.unwrap_or(0), report.counts())
    }

    fn start(index: usize) -> Vec<u8> {
        Frame::TestStart { index }.encode(KEY)
    }

    fn end(index: usize, ending: Ending) -> Vec<u8> {
        Frame::TestEnd { index, ending, milliseconds: 5 }.encode(KEY)
    }

    fn frame(frame: Frame) -> Vec<u8> {
        frame.encode(KEY)
    }

    #[test]
    fn subtests_are_counted_by_what_their_lines_say() {
        let (a, b) = (program("test_a", &["one", "two", "three"]), program("test_b", &["four"]));
        let console = [
            b"boot noise\r\n".to_vec(),
            frame(Frame::Start),
            start(0),
            b"ok one\r\nsome output\r\nskip two: no such thing\r\nnot ok three: 1 is not 2\r\n".to_vec(),
            end(0, Ending::Code(1)),
            start(1),
            b"ok four\r\n".to_vec(),
            end(1, Ending::Code(0)),
            frame(Frame::Exit(Ending::Code(0))),
        ];
        assert_eq!(play(&[&a, &b], &console.concat(), ""), (2, (2, 1, 1)));
    }

    #[test]
    fn the_emulators_fault_is_excused_before_the_tests_only() {
        let a = program("test_a", &["one"]);
        let oops = b"[    1.967632] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\n";
        assert_eq!(play(&[&a], oops, ""), (0, (0, 0, 0)));
        let console = [&frame(Frame::Start), &start(0), &oops[..]].concat();
        assert_eq!(play(&[&a], &console, ""), (1, (0, 1, 0)));
    }

    #[test]
    fn a_test_that_says_nothing_has_failed() {
        let a = program("test_a", &["one", "two"]);
        let run = |ending| {
            let console = [
                frame(Frame::Start),
                start(0),
                b"ok one\n".to_vec(),
                end(0, ending),
                frame(Frame::Exit(Ending::Code(0))),
            ];
            play(&[&a], &console.concat(), "").1
        };
        for ending in [Ending::Code(0), Ending::Signal(11), Ending::TimedOut, Ending::NotStarted(2)] {
            assert_eq!(run(ending), (1, 1, 0), "{ending}");
        }
    }

    #[test]
    fn a_program_whose_subtests_all_pass_still_has_to_end_well() {
        let a = program("test_a", &["one"]);
        let console = [
            frame(Frame::Start),
            start(0),
            b"ok one\n".to_vec(),
            end(0, Ending::Signal(6)),
            frame(Frame::Exit(Ending::Code(0))),
        ];
        assert_eq!(play(&[&a], &console.concat(), "").1, (1, 1, 0));
    }

    #[test]
    fn a_machine_that_goes_down_fails_the_running_test_and_leaves_the_rest_to_the_next() {
        let (a, b) = (program("test_a", &["one", "two"]), program("test_b", &["three"]));
        let console = [frame(Frame::Start), start(0), b"ok one\nKernel panic\n".to_vec()];
        assert_eq!(play(&[&a, &b], &console.concat(), ""), (1, (1, 1, 0)));
    }

    #[test]
    fn a_machine_that_hangs_is_ended() {
        let a = program("test_a", &["one"]);
        let console = [frame(Frame::Start), start(0)];
        assert_eq!(play(&[&a], &console.concat(), "exec sleep 1000"), (1, (0, 1, 0)));
    }

    #[test]
    fn a_machine_that_does_not_boot_fails_all_tests_and_itself() {
        let (a, b) = (program("test_a", &["one", "two"]), program("test_b", &["three"]));
        assert_eq!(play(&[&a, &b], b"SeaBIOS\n", ""), (2, (0, 4, 0)));
        assert_eq!(play(&[&a, &b], b"", "exit 1"), (2, (0, 4, 0)));
    }

    #[test]
    fn a_machine_that_does_not_power_off_has_failed() {
        let a = program("test_a", &["one"]);
        let console = [
            frame(Frame::Start),
            start(0),
            b"ok one\n".to_vec(),
            end(0, Ending::Code(0)),
            frame(Frame::Exit(Ending::Code(0))),
        ];
        assert_eq!(play(&[&a], &console.concat(), "exec sleep 1000"), (1, (1, 1, 0)));
    }
}
