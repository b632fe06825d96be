//! Boots an outsider's archive and talks to its console.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use roundtable::console::{Log, printable};
use roundtable::guest::{Event, Guest};

use super::boots::{Boot, End, Script, Talk};
use super::report::Report;
use super::{Bench, Subject, emulator};

/// How much of a console is shown when a guest fails.
const SHOWN_LINES: usize = 60;

/// Runs one conversation as one test.
pub fn run(
    bench: &Bench,
    boot: &Boot,
    script: &Script,
    subject: Subject,
    name: &str,
    report: &mut Report,
) -> Result<()> {
    let name = format!("[{}] {name}", subject.name());
    if bench.is_out_of_time() {
        report.fail(&name, "not run: the time budget is used up", "");
        return Ok(());
    }
    let mut excused = 0;
    loop {
        report.busy_with(&name);
        let start = Instant::now();
        let mut log = Log::create(&bench.log(boot.name, subject))?;
        let Some(Failure { reason, heard }) = talk_once(bench, boot, script, subject, &mut log, report)?
        else {
            report.pass(&name, Some(start.elapsed()));
            return Ok(());
        };
        let console = log.last_lines(SHOWN_LINES);
        let excuses = excused < emulator::MOST && !heard;
        if excuses && emulator::is_to_blame(subject, boot.name, &console, report) {
            excused += 1;
            continue;
        }
        let place = log.path().display();
        report.fail(&name, &reason, &format!("{console}\n(the whole console: {place})"));
        return Ok(());
    }
}

/// What went wrong.
struct Failure {
    reason: String,
    /// Whether anything that was waited for had come before.
    heard: bool,
}

/// Boots, talks, and gives what went wrong, if anything.
fn talk_once(
    bench: &Bench,
    boot: &Boot,
    script: &Script,
    subject: Subject,
    log: &mut Log,
    report: &mut Report,
) -> Result<Option<Failure>> {
    let initrd = (script.archive)(&bench.parts)?.write_temporary(&bench.parts.scratch, script.gzip)?;
    let machine = boot.machine(bench.kernel(subject)?, initrd.to_path_buf(), subject);
    let start = Instant::now();
    let deadline = bench.deadline(Duration::from_secs(boot.limit.into()));
    let mut guest = Guest::start(machine.command())?;
    let mut talk = Conversation::new(script.talk);
    let reason = loop {
        let answer = talk.next_to_send();
        guest.send(answer.as_bytes());
        match guest.wait(&bench.signals, Some(deadline), None)? {
            Event::Output(bytes) => {
                log.add(&bytes)?;
                if bench.verbose {
                    report.print(printable(&bytes).trim_end_matches('\n'));
                }
                talk.hear(&bytes);
            }
            Event::Closed => {
                let (status, errors) = guest.reap()?;
                break if !status.success() || !errors.is_empty() {
                    Some(format!("QEMU failed ({status}): {errors}"))
                } else {
                    talk.missing()
                        .map(|expected| format!("the machine went down before it printed {expected:?}"))
                };
            }
            Event::Deadline => {
                guest.finish()?;
                break match (talk.missing(), script.end) {
                    (Some(expected), _) => {
                        Some(format!("{expected:?} did not come in {} s", start.elapsed().as_secs()))
                    }
                    (None, End::PowerOff) => Some("the machine did not power off".to_string()),
                };
            }
            Event::Signal(signal) => {
                guest.finish()?;
                bail!("ended by signal {signal}");
            }
            Event::Input | Event::Terminal(_) => {}
        }
    };
    Ok(reason.map(|reason| Failure { reason, heard: talk.rest.len() < script.talk.len() }))
}

/// Where a conversation stands.
struct Conversation<'a> {
    rest: &'a [Talk],
    heard: String,
}

impl<'a> Conversation<'a> {
    fn new(talk: &'a [Talk]) -> Conversation<'a> {
        Conversation { rest: talk, heard: String::new() }
    }

    /// What is our turn to say.
    fn next_to_send(&mut self) -> String {
        let mut out = String::new();
        loop {
            match self.rest.first() {
                Some(Talk::Send(text)) => out.push_str(text),
                Some(Talk::Expect(text)) => {
                    if !self.find(&[text]) {
                        return out;
                    }
                }
                Some(Talk::ExpectOneOf(texts)) => {
                    if !self.find(texts) {
                        return out;
                    }
                }
                None => return out,
            }
            self.rest = &self.rest[1..];
        }
    }

    /// Whether one of the texts has come; what comes next is looked for behind the first of them only.
    fn find(&mut self, texts: &[&str]) -> bool {
        let ends = texts.iter().filter_map(|text| Some(self.heard.find(text)? + text.len()));
        let first = ends.min();
        if let Some(end) = first {
            self.heard.drain(..end);
        }
        first.is_some()
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.heard.push_str(&String::from_utf8_lossy(bytes).replace('\r', ""));
    }

    fn missing(&self) -> Option<&'static str> {
        self.rest.iter().find_map(|talk| match talk {
            Talk::Expect(text) => Some(*text),
            Talk::ExpectOneOf(texts) => Some(texts[0]),
            Talk::Send(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_sent_when_what_it_answers_has_come() {
        let talk = [
            Talk::Expect("# "),
            Talk::Send("ls\n"),
            Talk::Expect("file"),
            Talk::Expect("# "),
            Talk::Send("exit\n"),
        ];
        let mut conversation = Conversation::new(&talk);
        assert_eq!(conversation.next_to_send(), "");
        conversation.hear(b"welcome\r\n#");
        assert_eq!(conversation.next_to_send(), "");
        conversation.hear(b" ");
        assert_eq!(conversation.next_to_send(), "ls\n");
        assert_eq!(conversation.missing(), Some("file"));
        // The prompt before the file is not the one that is waited for.
        conversation.hear(b"# ls\r\nfile\r\n");
        assert_eq!(conversation.next_to_send(), "");
        conversation.hear(b"# ");
        assert_eq!(conversation.next_to_send(), "exit\n");
        assert_eq!(conversation.missing(), None);
    }

    #[test]
    fn one_of_several_is_enough() {
        let talk = [Talk::ExpectOneOf(&["this", "that"]), Talk::Send("x"), Talk::ExpectOneOf(&["a", "b"])];
        let mut conversation = Conversation::new(&talk);
        conversation.hear(b"it is");
        assert_eq!(conversation.next_to_send(), "");
        conversation.hear(b" that");
        assert_eq!(conversation.next_to_send(), "x");
        assert_eq!(conversation.missing(), Some("a"));
    }
}
