//! `roundtable watch`: the audit as a live screen.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};

use crate::audit::report::{FileReport, Report};
use crate::audit::{LookOptions, audit};
use crate::output::human;

/// How to watch.
#[derive(Args, Clone, Debug)]
pub struct WatchOptions {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub interval: u64,

    /// How far to look.
    #[command(flatten)]
    pub look: LookOptions,
}

/// Watches until the user presses q, Esc or Ctrl-C; the exit status.
pub fn run(options: &WatchOptions) -> Result<i32> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("watch needs a terminal; `roundtable audit` prints the same once");
    }
    let source = options.look.source();
    // An error before the screen is taken stays readable.
    let mut screen = Screen::new(audit(&source, &options.look, true)?);
    // Restores the terminal on a panic as well.
    let mut terminal = ratatui::try_init()?;
    let result = (|| {
        loop {
            let next = Instant::now() + Duration::from_secs(options.interval);
            terminal.draw(|frame| screen.draw(frame))?;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                if event::poll(left)? {
                    match event::read()? {
                        event if is_end(&event) => return Ok(0),
                        Event::Resize(..) => {
                            terminal.draw(|frame| screen.draw(frame))?;
                        }
                        _ => {}
                    }
                }
            }
            screen.update(audit(&source, &options.look, true)?, Duration::from_secs(options.interval));
        }
    })();
    ratatui::restore();
    result
}

/// Whether the user wants to leave.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// What is shown: the newest audit, and how fast faults came since the one before.
struct Screen {
    report: Report,
    /// Faults a second, by device and number of the file.
    rates: HashMap<(String, u64), u64>,
}

impl Screen {
    fn new(report: Report) -> Screen {
        Screen { report, rates: HashMap::new() }
    }

    fn update(&mut self, report: Report, elapsed: Duration) {
        let before: HashMap<i32, u64> =
            files(&self.report).flat_map(|file| file.faults_by_pid.iter().copied()).collect();
        self.rates = files(&report)
            .map(|file| {
                // Only processes that were there before: all the faults of a new one's life are not of this second.
                let of = |(pid, faults): &(i32, u64)| {
                    before.get(pid).map_or(0, |before| faults.saturating_sub(*before))
                };
                let faults: u64 = file.faults_by_pid.iter().map(of).sum();
                let rate = (u128::from(faults) * 1000 / elapsed.as_millis().max(1)) as u64;
                ((file.device.clone(), file.inode), rate)
            })
            .collect();
        self.report = report;
    }

    fn draw(&self, frame: &mut Frame) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(3), Constraint::Fill(1), Constraint::Length(1)])
                .areas(frame.area());
        let report = &self.report;
        let pools = report.pools.iter().filter(|pool| pool.total > 0).map(|pool| {
            format!(
                "{}: {} of {} free, {} reserved",
                human::bytes(pool.page_size),
                pool.free,
                pool.total,
                pool.reserved
            )
        });
        let lines = vec![
            Line::from(format!(
                "Linux {}, {}",
                report.kernel.release,
                human::processes(report.seen.processes)
            )),
            Line::from(format!("page tables {}", human::bytes(report.check.page_tables))),
            Line::from(format!("pools  {}", pools.collect::<Vec<_>>().join("   "))),
        ];
        frame.render_widget(Paragraph::new(lines), head);
        let rows = files(report).map(|file| {
            let rate = self.rates.get(&(file.device.clone(), file.inode)).copied().unwrap_or(0);
            Row::new([
                file.name.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
                human::bytes(file.page_size),
                human::bytes(file.size),
                human::count(file.processes),
                human::count(file.shared_slots()),
                human::bytes(file.bytes.now),
                human::bytes(file.bytes.best_here),
                human::count(rate),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(9),
        ];
        let header =
            Row::new(["file", "page", "size", "processes", "shared", "tables", "best here", "faults/s"])
                .style(Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered()), body);
        frame.render_widget(
            Paragraph::new("q leaves; faults are all of the processes that map the file"),
            foot,
        );
    }
}

fn files(report: &Report) -> impl Iterator<Item = &FileReport> {
    report.huge.iter().chain(&report.base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::source::Source;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    /// This host's, with a file put in.
    fn report(faults: u64) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("proc/7");
        std::fs::create_dir_all(&process).unwrap();
        std::fs::write(
            process.join("status"),
            "Name:\tpostgres\nVmPTE:\t     100 kB\nHugetlbPages:\t       0 kB\n",
        )
        .unwrap();
        std::fs::write(process.join("stat"), format!("7 (a) b) S 1 1 1 0 -1 0 {faults} 0 0 0 0 0\n"))
            .unwrap();
        let line = "200000000000-200040000000 rw-s 00000000 00:0f 5 /memfd:sga\x1b (deleted)\n";
        std::fs::write(process.join("maps"), line).unwrap();
        let smaps = format!("{line}KernelPageSize:     2048 kB\nVmFlags: rd wr sh ms ht \n");
        std::fs::write(process.join("smaps"), smaps).unwrap();
        std::fs::write(process.join("pagemap.txt"), "").unwrap();
        let options = LookOptions { seconds: 1, all: true, min_processes: 2, root: None };
        audit(&Source::recorded(folder.path()), &options, true).unwrap()
    }

    fn shown(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_files_and_rates() {
        let mut screen = Screen::new(report(1000));
        assert!(
            shown(&screen, 100, 12).contains("memfd sga?"),
            "a control character is not sent to the terminal"
        );
        screen.update(report(5000), Duration::from_secs(2));
        let text = shown(&screen, 100, 12);
        assert!(text.contains("2,000") && text.contains("1 GiB") && text.contains("2 MiB"), "{text}");
    }

    #[test]
    fn the_smallest_terminal_is_enough() {
        for (width, height) in [(1, 1), (10, 3), (40, 5)] {
            shown(&Screen::new(report(1)), width, height);
        }
    }

    #[test]
    fn q_escape_and_control_c_leave() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(is_end(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(is_end(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(is_end(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!is_end(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!is_end(&Event::Resize(1, 1)));
    }
}
