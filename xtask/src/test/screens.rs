//! `cargo xtask run` as a person uses it: on a terminal of theirs, and in a pipe.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, test_kill_process};
use screen::{Size, Terminal, USUAL, vt100};

use super::report::Report;
use super::{Bench, Subject, TestOptions};

/// How long one wait may take: a boot of Debian's Linux on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// One test.
struct Case {
    name: &'static str,
    /// On Debian's kernel too.
    both: bool,
    run: fn(&Scene) -> Result<()>,
}

const CASES: &[Case] = &[
    Case { name: "pipe", both: true, run: pipe },
    Case { name: "shell", both: true, run: shell },
    Case { name: "demonstration", both: false, run: demonstration },
    Case { name: "list", both: false, run: list },
    Case { name: "preset", both: false, run: preset },
    Case { name: "narrow", both: false, run: narrow },
    Case { name: "escape-key", both: false, run: escape_key },
    Case { name: "signal", both: false, run: signal },
    Case { name: "closed", both: false, run: closed },
];

/// Runs those that are asked for on one kernel.
pub fn run(bench: &Bench, subject: Subject, options: &TestOptions, report: &mut Report) -> Result<()> {
    let scene = Scene { xtask: std::env::current_exe()?, subject };
    for case in CASES.iter().filter(|case| case.both || subject != Subject::Linux) {
        let name = format!("terminal::{}", case.name);
        bench.test(&name, subject, options, report, || (case.run)(&scene).map(|()| None));
    }
    Ok(())
}

/// The command under test, for one kernel.
struct Scene {
    xtask: PathBuf,
    subject: Subject,
}

impl Scene {
    /// The words behind `cargo`.
    fn words(&self, words: &[&str]) -> Vec<String> {
        let first: &[&str] = match self.subject {
            // Its remarks, as those on its clocks after two seconds, would fall into what the job prints.
            Subject::Linux => &["run", "--kernel", "linux", "-p", "loglevel=1"],
            _ => &["run", "--kernel", "roundtable"],
        };
        first.iter().chain(words).map(|word| word.to_string()).collect()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(self.words(words)).env("TERM", "xterm").env_remove("NO_COLOR").env("LC_ALL", "C.UTF-8");
        command
    }

    fn terminal(&self, words: &[&str]) -> Result<Terminal> {
        Terminal::start(self.command(words), USUAL, LIMIT)
    }

    /// A terminal with a program that has said it is there, and its QEMU.
    fn ready(&self, script: &str) -> Result<(Terminal, Pid)> {
        let mut terminal = self.terminal(&["--", "busybox", "sh", "-c", script])?;
        terminal.expect("ready")?;
        let qemu = child_of(terminal.pid())?;
        Ok((terminal, qemu))
    }
}

/// The only child of a process.
fn child_of(pid: Pid) -> Result<Pid> {
    let pid = pid.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let mut children = children.split_whitespace();
    let child = children.next().context("no child")?.parse()?;
    ensure!(children.next().is_none(), "more than one child");
    Pid::from_raw(child).context("no child")
}

fn expect_status(terminal: &mut Terminal, expected: i32) -> Result<()> {
    let status = terminal.end()?;
    ensure!(status == expected, "status {status}, not {expected}\n{}", terminal.contents());
    Ok(())
}

/// The machine went with the command that started it.
fn expect_gone(qemu: Pid) -> Result<()> {
    ensure!(test_kill_process(qemu).is_err(), "QEMU is still there");
    Ok(())
}

/// What a program reads and prints is not changed on its way, and there is nothing else.
fn pipe(scene: &Scene) -> Result<()> {
    // Every byte, and more of them than the window takes at once.
    let input: Vec<u8> = (0..6000).map(|at: u32| (at * 7 / 3) as u8).collect();
    let mut child = scene
        .command(&["--", "busybox", "sh", "-c", "cat; test -t 1; echo; exit 3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("piped above")?.write_all(&input)?;
    let output = child.wait_with_output()?;
    let expected = [&input[..], b"\n"].concat();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{}\n{errors}", output.status);
    ensure!(
        output.stdout == expected,
        "other bytes come out: {:?}",
        output.stdout.escape_ascii().to_string()
    );
    ensure!(!errors.contains('\x1b'), "a screen is drawn that nobody sees\n{errors}");
    if scene.subject == Subject::Linux {
        return Ok(());
    }
    let mut command = scene.command(SMALL);
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}\n{text}", output.status);
    ensure!(!text.contains(['\x1b', '\r']), "a screen is drawn that nobody sees\n{text}");
    ensure!(text.contains("8 of 8 gone after"), "no progress\n{text}");
    // Nobody reads the output any more: then the machine has no reason to go on.
    let mut command = scene.command(&["--", "busybox", "yes"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut output = child.stdout.take().context("piped above")?;
    output.read_exact(&mut [0; 2])?;
    let qemu = child_of(Pid::from_child(&child))?;
    drop(output);
    let status = child.wait()?;
    ensure!(status.code() == Some(128 + 13), "{status}");
    expect_gone(qemu)
}

/// A shell on the host, and from it a shell in the guest, as a person types at them.
fn shell(scene: &Scene) -> Result<()> {
    let mut command = Command::new("sh");
    command.arg("-i").env("PS1", "host> ").env("TERM", "xterm").env_remove("ENV");
    let mut terminal = Terminal::start(command, USUAL, LIMIT)?;
    terminal.expect("host> ")?;
    let words: Vec<String> = scene.words(&["--", "busybox", "sh"]);
    // What is typed while the machine boots is for the job.
    terminal.ask(&format!("'{}' {}", scene.xtask.display(), words.join(" ")), "booting")?;
    terminal.ask("echo early-$((4 + 5))", "/ # ")?;
    terminal.expect("early-9\n")?;
    // It is a terminal there as well, the same one in size.
    terminal.ask("tty; stty size", "/dev/pts/0\n24 80\n")?;
    terminal
        .ask("sh -c 'trap \"stty size; exit 5\" WINCH; echo wait\\ing; sleep 1000 & wait'", "waiting\n")?;
    terminal.resize(Size { rows: 30, columns: 100 })?;
    terminal.expect("30 100\n")?;
    // Keys for the job in front: end it, stop it, go on with it.
    terminal.ask("(echo in-fr\\ont; sleep 1000)", "in-front\n")?;
    terminal.send("\x03")?;
    terminal.ask("echo st-$?", "st-130\n")?;
    let job = "trap \"echo ba\\ck\" CONT; echo th\\ere; sleep 1000 & wait; wait";
    terminal.ask(&format!("sh -c '{job}'"), "there\n")?;
    terminal.send("\x1a")?;
    terminal.expect("Stopped")?;
    terminal.ask("jobs", "Stopped")?;
    terminal.ask("fg", "back\n")?;
    terminal.send("\x03")?;
    // Typed before anybody reads, and more than the line to the guest takes at once.
    terminal.send("sleep 1\recho typed-$((1 + 1))\r")?;
    terminal.expect("typed-2\n")?;
    let line = "x".repeat(49) + "\r";
    terminal.ask("cat > /tmp/paste; wc -c < /tmp/paste", "\n")?;
    terminal.send(&line.repeat(200))?;
    terminal.send("\x04")?;
    terminal.expect("\n10000\n")?;
    // The host's own job control: the shell gets its terminal back as it was, and the guest after that.
    terminal.expect("/ # ")?;
    terminal.signal_foreground(Signal::TSTP)?;
    terminal.expect("host> ")?;
    terminal.ask("stty -a | grep -c -e ' -icanon' -e ' -echo '", "\n0\n")?;
    terminal.ask("fg", "run")?;
    terminal.ask("echo again-$((2 + 3)); stty size", "again-5\n30 100\n")?;
    terminal.expect("/ # ")?;
    terminal.ask("exit 7", "host> ")?;
    terminal.ask("echo st-$?", "st-7\n")?;
    terminal.send("exit\r")?;
    expect_status(&mut terminal, 0)?;
    terminal.expect_as_found()
}

/// A small form of the demonstration.
const SMALL: &[&str] = &["--sharers", "8", "--size", "64M"];

/// How the demonstration's output looks on a terminal of so many columns and of as many rows as it needs.
fn picture(scene: &Scene, columns: u16, colours: bool) -> Result<(Vec<String>, Terminal)> {
    let mut command = scene.command(SMALL);
    if !colours {
        command.env("NO_COLOR", "1");
    }
    let mut terminal = Terminal::start(command, Size { rows: 12, columns }, LIMIT)?;
    terminal.wait("booting", |shown| shown.screen().contents().contains("booting Roundtable"))?;
    expect_status(&mut terminal, 0)?;
    terminal.expect_as_found()?;
    let tall = Size { rows: 200, columns };
    let rows = terminal.look(|shown| {
        let mut parser = vt100::Parser::new(tall.rows.try_into()?, tall.columns.try_into()?, 0);
        parser.process(shown.transcript());
        anyhow::Ok(parser.screen().rows(0, columns).map(|row| row.trim_end().to_string()).collect())
    })?;
    Ok((rows, terminal))
}

/// The demonstration fits the usual terminal, and is in no colour where none is wanted.
fn demonstration(scene: &Scene) -> Result<()> {
    let (rows, terminal) = picture(scene, 80, false)?;
    let text = rows.join("\n");
    let bars = rows.iter().filter(|row| row.starts_with("[####")).collect::<Vec<_>>();
    ensure!(bars.len() == 2 && bars.iter().all(|bar| bar.contains("8 of 8 gone")), "bars: {bars:?}\n{text}");
    ensure!(!text.contains("booting"), "what is over is still there\n{text}");
    let all = terminal.look(|shown| String::from_utf8_lossy(shown.transcript()).into_owned());
    for line in all.lines() {
        let last = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        ensure!(screen_width(last) <= 80, "wider than the terminal: {last}");
    }
    // Colours are the sequences that end in an m.
    let colour = all.split('\x1b').skip(1).find(|sequence| {
        let end = sequence.trim_start_matches(|c: char| c == '[' || c == ';' || c.is_ascii_digit());
        sequence.starts_with('[') && end.starts_with('m')
    });
    ensure!(colour.is_none(), "a colour: {colour:?}");
    Ok(())
}

/// The presets by name, on a terminal and to somebody who reads nothing of it.
fn list(scene: &Scene) -> Result<()> {
    let mut terminal = scene.terminal(&["--list"])?;
    expect_status(&mut terminal, 0)?;
    let text = terminal.contents();
    for (name, about) in [("postgres", "PostgreSQL: "), ("redis", "Redis: "), ("jvm", "Java: ")] {
        let is_told =
            |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(about));
        ensure!(text.lines().any(is_told), "no {name}\n{text}");
    }
    terminal.expect_as_found()?;
    let mut child = scene.command(&["--list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A preset of the user's own: its steps on the terminal, and its figures as a table at the end.
fn preset(scene: &Scene) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("own.toml");
    std::fs::write(
        &path,
        "about = \"a test\"\n[environment]\nCOUNT = \"3\"\n[[steps]]\nname = \"count\"\n\
         run = 'for i in 1 2 $COUNT; do echo line-$((i + 10)); done; figure Numbers counted $COUNT'\n",
    )?;
    let mut terminal = scene.terminal(&["--", path.to_str().context("a path of our own")?])?;
    expect_status(&mut terminal, 0)?;
    let text = terminal.contents();
    for expected in ["== count\n", "line-11\n", "line-13\n", "Numbers", "counted"] {
        ensure!(text.contains(expected), "no {expected:?}\n{text}");
    }
    terminal.expect_as_found()
}

/// Characters of a line without its control sequences.
fn screen_width(line: &str) -> usize {
    console::measure_text_width(line)
}

/// Progress is one row on a narrow terminal, too.
fn narrow(scene: &Scene) -> Result<()> {
    let (rows, _terminal) = picture(scene, 40, true)?;
    let text = rows.join("\n");
    let bars = rows.iter().filter(|row| row.contains(" of 8 ")).collect::<Vec<_>>();
    ensure!(bars.len() == 2 && bars.iter().all(|bar| bar.contains("8 of 8 gone")), "bars: {bars:?}\n{text}");
    ensure!(!text.contains("booting"), "what is over is still there\n{text}");
    Ok(())
}

/// The key that ends the machine works when the job reads nothing, and what the job has made of the screen is
/// put right.
fn escape_key(scene: &Scene) -> Result<()> {
    let script = "printf '\\033[?1049h\\033[?25l\\033[31mre'; echo ady; sleep 1000";
    let (mut terminal, qemu) = scene.ready(script)?;
    terminal.send(&"x".repeat(3000))?;
    terminal.send("\x01x")?;
    expect_status(&mut terminal, 130)?;
    let text = terminal.contents();
    ensure!(text.contains("ended by Ctrl-A X"), "not a word\n{text}");
    terminal.expect_as_found()?;
    expect_gone(qemu)
}

/// A signal ends the command, and the machine with it, and leaves the terminal as it was.
fn signal(scene: &Scene) -> Result<()> {
    let (mut terminal, qemu) = scene.ready("echo re\\ady; cat")?;
    terminal.signal(Signal::TERM)?;
    expect_status(&mut terminal, 128 + 15)?;
    terminal.expect_as_found()?;
    expect_gone(qemu)
}

/// No machine is left behind when the terminal goes.
fn closed(scene: &Scene) -> Result<()> {
    let (mut terminal, qemu) = scene.ready("trap '' HUP; echo re\\ady; cat; sleep 1000")?;
    terminal.hang_up();
    expect_status(&mut terminal, 128 + 1)?;
    expect_gone(qemu)
}
