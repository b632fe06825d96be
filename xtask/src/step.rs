//! A step that takes a while: one line that says what and why, its output only when it fails.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many lines of a failed step's output are shown.
const SHOWN: usize = 15;

/// Says what is done and why; on a terminal followed by a running clock until the value is dropped.
pub struct Step {
    bar: ProgressBar,
}

impl Step {
    /// Starts a step.
    pub fn new(what: &str, why: &str) -> Step {
        eprintln!("{} {what} ({why})", console::style("   set up").green().bold().for_stderr());
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("          {spinner} {elapsed} {wide_msg}");
        bar.set_style(style.expect("the template is a constant"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Step { bar }
    }

    /// Runs a command as part of the step; gives its output. Fails with the end of it.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        let (sender, lines) = mpsc::channel();
        let readers: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("piped above")),
            Box::new(child.stderr.take().expect("piped above")),
        ];
        for reader in readers {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let deadline = Instant::now() + limit;
        let mut output: Vec<String> = Vec::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.bar.set_message(line.trim().to_string());
                    output.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    child.kill()?;
                    child.wait()?;
                    bail!("{name} took longer than {} s", limit.as_secs());
                }
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let tail = output[output.len().saturating_sub(SHOWN)..].join("\n  | ");
            bail!("{name} failed ({status}):\n  | {tail}");
        }
        Ok(output.join("\n"))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
