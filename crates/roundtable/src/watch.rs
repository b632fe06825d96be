//! `roundtable watch`: the audit as a live screen.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::audit::answer::tables::Owner;
use crate::audit::report::{FileReport, Report};
use crate::audit::{LookOptions, audit};
use crate::output::human;
use crate::signals::{Caught, Change, Signals};
use crate::terminal;

/// How long the screen may take to notice a new audit.
const ANSWERS: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How to watch.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Keys: Tab shows files, programs, units or processes; t f p s sort by tables, faults, \
        processes, size; q leaves.\n\nExamples:\n  roundtable watch\n  roundtable watch --interval 10"
)]
pub struct WatchOptions {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub interval: u64,

    /// How far to look.
    #[command(flatten)]
    pub look: LookOptions,
}

/// Watches until the user presses q, Esc or Ctrl-C, or a signal asks to end; the exit status.
pub fn run(options: &WatchOptions) -> Result<i32> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("watch needs a terminal; `roundtable audit` prints the same once");
    }
    // An error before the screen is taken stays readable.
    let looks = looks(options)?;
    let signals = Signals::catch()?;
    signals.catch_terminal()?;
    // Restores the terminal on a panic as well.
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, &looks, &signals);
    // Nothing is left to do about a terminal that is gone; but the screen, when it is dropped, would complain
    // of it to that terminal.
    let _ = ratatui::try_restore();
    if terminal.show_cursor().is_err() {
        std::mem::forget(terminal);
    }
    result
}

/// An audit, and when it began.
type Look = (Instant, Result<Report>);

/// Audits again and again, aside, so that the screen answers while an audit takes its time.
fn looks(options: &WatchOptions) -> Result<Receiver<Look>> {
    let (sender, looks) = mpsc::sync_channel(0);
    let options = options.clone();
    let source = options.look.source();
    let mut began = Instant::now();
    let mut next = audit(&source, &options.look, true)?;
    thread::Builder::new().name("audit".into()).spawn(move || {
        // Ends with the screen, which then takes no more.
        while sender.send((began, Ok(next))).is_ok() {
            thread::sleep(Duration::from_secs(options.interval));
            began = Instant::now();
            next = match audit(&source, &options.look, true) {
                Ok(report) => report,
                Err(error) => {
                    let _ = sender.send((began, Err(error)));
                    return;
                }
            };
        }
    })?;
    Ok(looks)
}

fn show(terminal: &mut DefaultTerminal, looks: &Receiver<Look>, signals: &Signals) -> Result<i32> {
    let (mut last, first) = looks.recv()?;
    let mut screen = Screen::new(first?);
    terminal.draw(|frame| screen.draw(frame))?;
    loop {
        let mut is_new = false;
        match wait(signals)? {
            None => {}
            Some(Wish::Leave(status)) => return Ok(status),
            Some(Wish::Redraw) => is_new = true,
            Some(Wish::Show(key)) => is_new = screen.obey(key),
            Some(Wish::Stop) => {
                ratatui::try_restore()?;
                terminal.show_cursor()?;
                terminal::stop();
                *terminal = ratatui::try_init()?;
                is_new = true;
            }
        }
        match looks.try_recv() {
            Ok((began, report)) => {
                screen.update(report?, began - last);
                last = began;
                is_new = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => bail!("the audit has ended"),
        }
        if is_new {
            terminal.draw(|frame| screen.draw(frame))?;
        }
    }
}

/// What the user wants, or the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Leave(i32),
    Stop,
    Redraw,
    /// A key of the screen's own.
    Show(u8),
}

/// Waits a while for a key or a signal. A terminal that is gone is seen here: the reader of keys that the
/// screen's library has reads it for ever.
fn wait(signals: &Signals) -> Result<Option<Wish>> {
    let wish = |caught| match caught {
        Caught::End(signal) => Wish::Leave(128 + signal),
        Caught::Terminal(Change::Stop) => Wish::Stop,
        Caught::Terminal(Change::Continued | Change::Resized) => Wish::Redraw,
    };
    if let Some(caught) = signals.take() {
        return Ok(Some(wish(caught)));
    }
    let stdin = io::stdin();
    let mut entries = [PollFd::new(&stdin, PollFlags::IN), signals.poll_entry()];
    match poll(&mut entries, Some(&ANSWERS)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if entries[0].revents().is_empty() {
        return Ok(signals.take().map(wish));
    }
    let mut keys = [0; 256];
    match rustix::io::read(&stdin, &mut keys) {
        Err(Errno::INTR | Errno::AGAIN) => Ok(None),
        Ok(0) | Err(_) => Ok(Some(Wish::Leave(128 + libc::SIGHUP))),
        Ok(count) => Ok(asked(&keys[..count])),
    }
}

/// What the user asks for by these keys.
fn asked(keys: &[u8]) -> Option<Wish> {
    const CTRL_C: u8 = 3;
    const CTRL_Z: u8 = 26;
    const ESC: u8 = 27;
    let mut rest = keys;
    while let [key, after @ ..] = rest {
        rest = after;
        match (key, after) {
            (b'q' | &CTRL_C, _) | (&ESC, []) => return Some(Wish::Leave(0)),
            (&CTRL_Z, _) => return Some(Wish::Stop),
            (b'\t' | b't' | b'f' | b'p' | b's', _) => return Some(Wish::Show(*key)),
            // An arrow or the like.
            (&ESC, [b'[', name @ ..]) => {
                let end = name.iter().position(|byte| (0x40..=0x7e).contains(byte));
                rest = end.map_or(&[], |end| &name[end + 1..]);
            }
            (&ESC, [b'O', _, then @ ..] | [_, then @ ..]) => rest = then,
            _ => {}
        }
    }
    None
}

/// Whose page tables are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Files,
    Programs,
    Units,
    Processes,
}

impl View {
    fn next(self) -> View {
        match self {
            View::Files => View::Programs,
            View::Programs => View::Units,
            View::Units => View::Processes,
            View::Processes => View::Files,
        }
    }

    fn title(self) -> &'static str {
        match self {
            View::Files => "files",
            View::Programs => "programs",
            View::Units => "units",
            View::Processes => "processes",
        }
    }
}

/// By what the rows are sorted, the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Tables,
    Faults,
    Processes,
    Size,
}

/// What is shown: the newest audit, and how fast faults came since the one before.
struct Screen {
    report: Report,
    view: View,
    order: Order,
    /// Faults a second, by device and number of the file.
    rates: HashMap<(String, u64), u64>,
}

impl Screen {
    fn new(report: Report) -> Screen {
        Screen { report, view: View::Files, order: Order::Tables, rates: HashMap::new() }
    }

    /// Changes what is shown by a key; whether it did.
    fn obey(&mut self, key: u8) -> bool {
        match key {
            b'\t' => self.view = self.view.next(),
            b't' => self.order = Order::Tables,
            b'f' => self.order = Order::Faults,
            b'p' => self.order = Order::Processes,
            b's' => self.order = Order::Size,
            _ => return false,
        }
        true
    }

    fn rate(&self, file: &FileReport) -> u64 {
        self.rates.get(&(file.device.clone(), file.inode)).copied().unwrap_or(0)
    }

    fn update(&mut self, report: Report, elapsed: Duration) {
        let before: HashMap<i32, u64> =
            files(&self.report).flat_map(|file| file.faults_by_pid.iter().copied()).collect();
        self.rates = files(&report)
            .map(|file| {
                // Only processes that were there before: all the faults of a new one's life are not of this
                // second.
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
        let pools = report.pools.iter().map(|one| &one.pool).filter(|pool| pool.total > 0).map(|pool| {
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
        let (table, count) = match self.view {
            View::Files => self.files(body.width),
            View::Programs => self.owners(&report.page_tables.programs),
            View::Units => self.owners(&report.page_tables.units),
            View::Processes => self.owners(&report.page_tables.processes),
        };
        frame.render_widget(table.block(Block::bordered().title(self.view.title())), body);
        // The borders and the header are no rows.
        let hidden = count.saturating_sub(usize::from(body.height.saturating_sub(3)));
        let rest = if hidden > 0 { format!("{hidden} more do not fit; ") } else { String::new() };
        // It fits a terminal of 80 columns; what is not seen comes first, so that no width hides it.
        let text = format!("{rest}q leaves, Tab: next list, sort by t tables f faults p processes s size");
        frame.render_widget(Paragraph::new(text), foot);
    }

    fn files(&self, width: u16) -> (Table<'_>, usize) {
        let shown = columns(width.saturating_sub(2));
        let mut all: Vec<&FileReport> = files(&self.report).collect();
        // Those that are alike stay in the audit's order.
        all.sort_by_key(|file| {
            std::cmp::Reverse(match self.order {
                Order::Tables => file.bytes.now,
                Order::Faults => self.rate(file),
                Order::Processes => file.processes,
                Order::Size => file.size,
            })
        });
        let rows =
            all.iter().map(|file| Row::new(shown.iter().map(|column| column.text(file, self.rate(file)))));
        let widths = shown.iter().map(|column| match column.width() {
            None => Constraint::Fill(1),
            Some(width) => Constraint::Length(width),
        });
        let header = shown.iter().map(|column| column.title());
        (Table::new(rows, widths).header(bold(header)), all.len())
    }

    fn owners(&self, owners: &[Owner]) -> (Table<'_>, usize) {
        let mut all: Vec<&Owner> = owners.iter().collect();
        all.sort_by_key(|owner| {
            std::cmp::Reverse(match self.order {
                Order::Tables | Order::Faults => owner.bytes,
                Order::Processes => owner.processes,
                Order::Size => owner.resident,
            })
        });
        let rows = all.iter().map(|owner| {
            Row::new([
                owner.subject().describe(),
                human::count(owner.processes),
                human::bytes(owner.bytes),
                human::bytes(owner.private),
                human::bytes(owner.resident),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
        ];
        let header = ["who", "processes", "tables", "private", "in place"];
        let count = all.len();
        (Table::new(rows.collect::<Vec<_>>(), widths).header(bold(header.into_iter())), count)
    }
}

fn bold<'a>(titles: impl Iterator<Item = &'a str>) -> Row<'a> {
    Row::new(titles.collect::<Vec<_>>()).style(Style::new().add_modifier(Modifier::BOLD))
}

/// What is shown of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    File,
    Page,
    Size,
    Processes,
    Shared,
    Tables,
    Best,
    Faults,
}

impl Column {
    /// `None` takes what the others leave.
    fn width(self) -> Option<u16> {
        match self {
            Column::File => None,
            Column::Page => Some(6),
            Column::Shared => Some(7),
            Column::Processes | Column::Faults => Some(9),
            Column::Size | Column::Tables | Column::Best => Some(9),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Column::File => "file",
            Column::Page => "page",
            Column::Size => "size",
            Column::Processes => "processes",
            Column::Shared => "shared",
            Column::Tables => "tables",
            Column::Best => "best here",
            Column::Faults => "faults/s",
        }
    }

    fn text(self, file: &FileReport, rate: u64) -> String {
        match self {
            Column::File => human::printable(&file.name),
            Column::Page => human::bytes(file.page_size),
            Column::Size => human::bytes(file.size),
            Column::Processes => human::count(file.processes),
            Column::Shared => human::count(file.shared_slots()),
            Column::Tables => human::bytes(file.bytes.now),
            Column::Best => human::bytes(file.bytes.best_here),
            Column::Faults => human::count(rate),
        }
    }
}

/// A file's name gets at least so much.
const NAME: u16 = 16;

/// The columns that find room beside the name, the most telling ones first.
fn columns(width: u16) -> Vec<Column> {
    use Column::{Best, Faults, File, Page, Processes, Shared, Size, Tables};
    let mut columns = vec![File];
    let mut left = width.saturating_sub(NAME);
    for column in [Tables, Faults, Processes, Best, Shared, Size, Page] {
        // One for the gap.
        let needed = column.width().unwrap_or(0) + 1;
        if needed > left {
            break;
        }
        left -= needed;
        columns.push(column);
    }
    columns.sort();
    columns
}

fn files(report: &Report) -> impl Iterator<Item = &FileReport> {
    report.huge.iter().chain(&report.base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::source::Source;
    use crate::size::Size;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

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
        let options =
            LookOptions { seconds: 1, all: true, min_processes: 2, worth: Size(1 << 20), root: None };
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
    fn a_narrow_terminal_shows_the_name_and_what_tells_most() {
        let screen = Screen::new(report(1));
        let text = shown(&screen, 80, 24);
        assert!(
            text.contains("memfd sga?") && text.contains("tables") && text.contains("faults/s"),
            "{text}"
        );
        assert_eq!(columns(98).len(), 8, "all of them");
        assert_eq!(columns(78).first(), Some(&Column::File));
        assert_eq!(columns(30), [Column::File, Column::Tables]);
        assert_eq!(columns(0), [Column::File]);
        let text = shown(&screen, 100, 7);
        assert!(text.contains("1 more do not fit"), "{text}");
    }

    #[test]
    fn keys_choose_what_is_listed_and_its_order() {
        let mut screen = Screen::new(report(1));
        assert_eq!(asked(b"x\t"), Some(Wish::Show(b'\t')));
        assert!(!screen.obey(b'x') && screen.obey(b'\t'));
        let text = shown(&screen, 100, 12);
        assert!(text.contains("postgres (pid 7)") && text.contains("100 KiB"), "{text}");
        for view in [View::Units, View::Processes, View::Files] {
            screen.obey(b'\t');
            assert_eq!(screen.view, view);
        }
        let mut small = screen.report.huge[0].clone();
        (small.name, small.inode, small.processes, small.bytes.now) = ("small".into(), 6, 9, 0);
        screen.report.huge.push(small);
        let first = |screen: &Screen| {
            let text = shown(screen, 100, 12);
            text.find("small").unwrap() < text.find("memfd").unwrap()
        };
        assert!(!first(&screen), "by tables");
        screen.obey(b'p');
        assert!(first(&screen), "by processes");
    }

    #[test]
    fn the_smallest_terminal_is_enough() {
        for (width, height) in [(1, 1), (10, 3), (40, 5)] {
            shown(&Screen::new(report(1)), width, height);
        }
    }

    #[test]
    fn q_escape_and_control_c_leave() {
        for keys in ["q", "\x1b", "\x03", "xq", "\x1b[Aq", "\x1b[1;5Cq", "\x1bOPq", "\x1bxq"] {
            assert_eq!(asked(keys.as_bytes()), Some(Wish::Leave(0)), "{keys:?}");
        }
        for keys in ["", "c", "\r", "\x1b[A", "\x1b[1;5C", "\x1bOq", "\x1bq", "\x1b[1;"] {
            assert_eq!(asked(keys.as_bytes()), None, "{keys:?}");
        }
        assert_eq!(asked(b"\x1a"), Some(Wish::Stop));
    }
}
