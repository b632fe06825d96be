//! `roundtable record`: copies what an audit reads into a folder that `audit --root` reads, without what is private.
//!
//! Names of files and of processes become numbers, processes are numbered anew, and of each file only what an audit uses is
//! kept. So an operator may send it on, and the tests read such recordings.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use procfs::process::Process as Handle;

use super::collect::{self, Missing, interesting};
use super::files::{Devices, FileId};
use super::kernel_version::SHARING_OPTIONS;
use super::maps::{self, Line};
use super::mounts::{Mount, mounts};
use super::pagemap::Pagemap;
use super::pools;
use super::recording::{DENIED, RANGES, Ranges, Recorded};
use super::slots::Witness;
use super::source::Source;
use super::unit;
use super::witness::Kernel;
use crate::output::human;

/// What to record.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  roundtable record /tmp/host\n  roundtable audit --all --root /tmp/host")]
pub struct RecordOptions {
    /// A folder that is not there yet
    pub folder: PathBuf,

    /// Keep the names of files and processes
    #[arg(long)]
    pub keep_names: bool,
}

/// Records this host; the exit status.
pub fn run(options: &RecordOptions) -> Result<i32> {
    let processes = record(&Source::host(), options)?;
    eprintln!(
        "{} recorded; look at it with: roundtable audit --root {}",
        human::processes(processes),
        options.folder.display()
    );
    Ok(0)
}

/// Records what a source shows; the number of processes with memory of their own.
pub fn record(source: &Source, options: &RecordOptions) -> Result<u64> {
    let folder = &options.folder;
    fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    machine(source, folder)?;
    let mut recorder = Recorder {
        source,
        devices: Devices::default(),
        witness: Kernel::new(source, None),
        names: (!options.keep_names).then(HashMap::new),
    };
    if recorder.witness.can_tell() {
        fs::write(folder.join("proc/kpagecount"), "")?;
    }
    let mut number = 0;
    for pid in source.processes()? {
        let place = folder.join(format!("proc/{}", number + 1));
        match recorder.process(pid, number + 1, &place) {
            Ok(true) => number += 1,
            // A kernel thread, or one that ended meanwhile.
            Ok(false) => {}
            Err(error) => bail!("process {pid}: {error:#}"),
        }
    }
    Ok(number as u64)
}

/// What is not of one process.
fn machine(source: &Source, folder: &Path) -> Result<()> {
    let put = |name: &str, text: &str| -> Result<()> {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().context("a name in a folder")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    fs::create_dir_all(folder.join("proc"))?;
    for name in
        ["proc/meminfo", "proc/version_signature", "proc/sys/kernel/osrelease", "proc/sys/kernel/arch"]
    {
        if let Some(text) = source.text(name) {
            put(name, &text)?;
        }
    }
    // Who built it, and where, stands in the first parentheses.
    let version = source.text("proc/version").unwrap_or_default();
    if let Some((before, rest)) = version.split_once('(')
        && let Some((_, behind)) = rest.split_once(')')
    {
        put("proc/version", &format!("{before}(builder){behind}"))?;
    }
    let release = source.text("proc/sys/kernel/osrelease").unwrap_or_default();
    if let Some(config) = super::kernel_version::config(source, release.trim()) {
        let kept = config.lines().filter(|line| SHARING_OPTIONS.iter().any(|option| line.contains(option)));
        let kept: Vec<&str> = kept.collect();
        put(&format!("boot/config-{}", release.trim()), &(kept.join("\n") + "\n"))?;
    }
    for name in pools::recorded_files(source) {
        if let Some(text) = source.text(&name) {
            put(&name, &text)?;
        }
    }
    Ok(())
}

struct Recorder<'a> {
    source: &'a Source,
    devices: Devices,
    witness: Kernel<'a>,
    /// The numbers that names have become; `None` when names are kept.
    names: Option<HashMap<Vec<u8>, usize>>,
}

impl Recorder<'_> {
    /// Records a process, if it has memory of its own and does not end meanwhile.
    fn process(&mut self, pid: i32, number: i32, folder: &Path) -> Result<bool> {
        let mut text = Vec::new();
        let Ok(handle) = self.source.process(pid) else { return Ok(false) };
        let Ok(Some(status)) = collect::status(self.source, &handle, &mut text) else { return Ok(false) };
        let faults = collect::faults(self.source, &handle, &mut text).unwrap_or(0);
        let maps = match collect::read(self.source, &handle, "maps", &mut text) {
            Ok(()) => Some(text),
            Err(Missing::Denied) => None,
            Err(Missing::Gone) => return Ok(false),
        };
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let name = if self.names.is_some() { format!("process-{number}") } else { status.name };
        let kilobytes = |bytes: u64| bytes >> 10;
        let (tables, huge) = (kilobytes(status.vm_pte), kilobytes(status.hugetlb));
        let status = format!("Name:\t{name}\nVmPTE:\t{tables:8} kB\nHugetlbPages:\t{huge:8} kB\n");
        fs::write(folder.join("status"), status)?;
        fs::write(folder.join("stat"), format!("{number} ({name}) S 1 1 1 0 -1 0 {faults} 0 0 0 0 0\n"))?;
        let unit = unit::of(self.source, &handle, &mut Vec::new());
        fs::write(folder.join("cgroup"), format!("0::/{}\n", self.unit(&unit)))?;
        match maps {
            None => fs::write(folder.join(DENIED), "")?,
            Some(maps) if self.maps_shared_memory(&handle, &maps) => {
                // It may end under our hands; then the recording shows it as an audit would see it.
                let _ = self.mappings(&handle, &maps, folder)?;
            }
            Some(_) => fs::write(folder.join("maps"), "")?,
        }
        Ok(true)
    }

    fn maps_shared_memory(&self, handle: &Handle, maps: &[u8]) -> bool {
        maps::lines(maps)
            .any(|line| matches!(interesting(self.source, &self.devices, handle, &line), Ok(Some(_))))
    }

    /// `None` when the process ended meanwhile.
    fn mappings(&mut self, handle: &Handle, maps: &[u8], folder: &Path) -> Result<Option<()>> {
        let mut out = fs::File::create(folder.join("maps"))?;
        for line in maps::lines(maps) {
            out.write_all(&self.line(&line))?;
        }
        if let Ok(link) = fs::read_link(self.source.path(&format!("proc/{}/ns/ipc", handle.pid))) {
            fs::create_dir(folder.join("ns"))?;
            symlink(link, folder.join("ns/ipc"))?;
        }
        self.mounts(handle, folder)?;
        let Ok(smaps) = handle.open_relative("smaps") else { return Ok(None) };
        self.smaps(BufReader::new(smaps), &mut fs::File::create(folder.join("smaps"))?)?;
        let Ok(mut pagemap) = Pagemap::open(self.source, handle) else { return Ok(None) };
        let ranges = self.ranges(handle, &mut pagemap, maps)?;
        fs::write(folder.join(RANGES), ranges.text())?;
        Ok(Some(()))
    }

    /// A line of maps as it is recorded.
    fn line(&mut self, line: &Line) -> Vec<u8> {
        let bit = |set, letter| if set { letter } else { '-' };
        let access = [
            bit(line.access.read, 'r'),
            bit(line.access.write, 'w'),
            bit(line.access.execute, 'x'),
            if line.access.shared { 's' } else { 'p' },
        ];
        let access: String = access.iter().collect();
        let (major, minor) = line.device;
        let mut out = format!(
            "{:x}-{:x} {access} {:08x} {major:02x}:{minor:02x} {} ",
            line.start, line.end, line.offset, line.inode
        )
        .into_bytes();
        out.extend(self.name(line.name));
        out.push(b'\n');
        out
    }

    /// A file's name, or a number for it. What only the kernel calls so stays.
    fn name(&mut self, name: &[u8]) -> Vec<u8> {
        let Some(names) = &mut self.names else { return name.to_vec() };
        let own = [&b"/SYSV"[..], b"/anon_hugepage", b"/dev/zero"];
        if !name.starts_with(b"/") || own.iter().any(|own| name.starts_with(own)) {
            return name.to_vec();
        }
        let next = names.len() + 1;
        let number = *names.entry(name.to_vec()).or_insert(next);
        let start = if name.starts_with(b"/memfd:") { "/memfd:" } else { "/" };
        let end = if name.ends_with(b" (deleted)") { " (deleted)" } else { "" };
        format!("{start}file-{number}{end}").into_bytes()
    }

    /// A unit's name, or a number for it.
    fn unit(&mut self, unit: &str) -> String {
        match &mut self.names {
            Some(names) if !unit.is_empty() => {
                let next = names.len() + 1;
                format!("unit-{}.service", *names.entry(unit.as_bytes().to_vec()).or_insert(next))
            }
            _ => unit.to_string(),
        }
    }

    /// File systems in memory, without where they are mounted.
    fn mounts(&self, handle: &Handle, folder: &Path) -> Result<()> {
        let mut text = Vec::new();
        if collect::read(self.source, handle, "mountinfo", &mut text).is_err() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&text);
        let mut out = String::new();
        for Mount { device, kind, .. } in mounts(&text) {
            if ["tmpfs", "hugetlbfs"].contains(&kind) {
                out += &format!("1 1 {device} / / rw - {kind} {kind} rw\n");
            }
        }
        Ok(fs::write(folder.join("mountinfo"), out)?)
    }

    /// Of smaps the page sizes and flags, of the files that lie on no driver's device.
    fn smaps(&mut self, smaps: impl BufRead, out: &mut fs::File) -> Result<()> {
        let mut lines = Vec::new();
        // One that ends meanwhile leaves what was read so far.
        let _ = maps::for_each_in_smaps(smaps, |line, extra| {
            if line.device.0 == 0 && line.has_file() {
                lines.extend(self.line(line));
                lines.extend(format!("KernelPageSize: {:8} kB\n", extra.page_size >> 10).into_bytes());
                if let Some(flags) = extra.flags {
                    lines.extend(format!("VmFlags: {flags} \n").into_bytes());
                }
            }
            true
        });
        Ok(out.write_all(&lines)?)
    }

    /// The populated ranges, those of huge pages cut at the ends of slots and mappings: each slot's first page is asked about.
    fn ranges(&self, handle: &Handle, pagemap: &mut Pagemap, maps: &[u8]) -> Result<Ranges> {
        let user = |line: &Line| line.start >> 63 == 0;
        let lines: Vec<Line> = maps::lines(maps).filter(user).collect();
        let areas: Vec<(u64, u64)> = lines.iter().map(|line| (line.start, line.end)).collect();
        let slot = self.source.geometry.slot();
        let mut ranges = Ranges::default();
        let _ = pagemap.populated(&areas, |range| {
            let mut start = range.start;
            while start < range.end {
                let mut end = range.end;
                let mut asked = None;
                if let Some(line) =
                    lines.iter().find(|line| range.huge && (line.start..line.end).contains(&start))
                {
                    end = end.min((start / slot + 1) * slot).min(line.end);
                    let file = FileId { device: line.device, inode: line.inode, namespace: 0 };
                    asked = self.witness.mapcount(handle.pid, file, start, end);
                }
                let mapcount = asked.filter(|&(address, _)| address == start).map(|(_, count)| count);
                ranges.push(Recorded { range: super::pagemap::Range { start, end, ..range }, mapcount });
                start = end;
            }
        });
        Ok(ranges)
    }
}
