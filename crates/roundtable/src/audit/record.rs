//! `roundtable record`: copies what an audit reads into a folder that `audit --root` reads, without what is private.
//!
//! Names of files and of processes become numbers, processes are numbered anew, and of each file only what an
//! audit uses is kept. So an operator may send it on, and the tests read such recordings.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use procfs::process::Process as Handle;

use super::advice::program::{self, Program};
use super::answer::limits::Groups;
use super::collect::{self, Missing, Process, interesting};
use super::deadline::Deadline;
use super::files::{Devices, FileId, describe};
use super::held::{HELD, Held};
use super::host::Host;
use super::kernel_version::SHARING_OPTIONS;
use super::maps::{self, Line};
use super::meminfo::Meminfo;
use super::mounts::{Mount, mounts};
use super::pagemap::Pagemap;
use super::pools::{self, Pool};
use super::postgres;
use super::recording::{DENIED, RANGES, Ranges, Recorded};
use super::slots::Witness;
use super::source::Source;
use super::unit;
use super::witness::Kernel;
use crate::output::human;
use crate::plan::postgres::Place;

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
    let _ = writeln!(
        std::io::stderr(),
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
        witness: Kernel::new(source, Deadline::never()),
        names: (!options.keep_names).then(HashMap::new),
        groups: Groups::find(source),
        pools: pools::read(source, &Meminfo::read(source)),
        numbers: HashMap::new(),
        servers: HashSet::new(),
        owners: BTreeSet::new(),
        root: folder.clone(),
    };
    recorder.control_groups_mounted(folder)?;
    if recorder.witness.can_tell() {
        fs::write(folder.join("proc/kpagecount"), "")?;
    }
    let mut number = 0;
    for pid in source.processes()? {
        let place = folder.join(format!("proc/{}", number + 1));
        match recorder.process(pid, number + 1, &place) {
            Ok(true) => {
                number += 1;
                recorder.numbers.insert(pid, number);
            }
            // A kernel thread, or one that ended meanwhile.
            Ok(false) => {}
            Err(error) => bail!("process {pid}: {error:#}"),
        }
    }
    recorder.held(folder)?;
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
    for name in [
        "proc/meminfo",
        "proc/version_signature",
        "proc/sys/kernel/osrelease",
        "proc/sys/kernel/arch",
        "proc/sys/vm/hugetlb_shm_group",
    ] {
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
    groups: Groups,
    pools: Vec<Pool>,
    /// The numbers that processes have become.
    numbers: HashMap<i32, i32>,
    /// Processes of PostgreSQL servers.
    servers: HashSet<i32>,
    /// The users that servers run as, with their names.
    owners: BTreeSet<(u32, String)>,
    /// The folder of the recording.
    root: PathBuf,
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
            Err(_) => return Ok(false),
        };
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        // What server it is decides about the advice, and is no secret; Oracle's processes have a database's
        // name in theirs.
        let program = program::of(&status.name, "");
        let is_known = !matches!(program, Program::Other | Program::Dpdk | Program::Oracle);
        let name =
            if self.names.is_none() || is_known { status.name.clone() } else { format!("process-{number}") };
        fs::write(folder.join("status"), self.status(&handle, &name, &status))?;
        fs::write(folder.join("stat"), format!("{number} ({name}) S 1 1 1 0 -1 0 {faults} 0 0 0 0 0\n"))?;
        self.control_groups(&handle, folder)?;
        if program == Program::PostgreSql {
            self.server(pid, status.parent, folder)?;
        }
        match maps {
            None => fs::write(folder.join(DENIED), "")?,
            // Of a server's private memory it is asked which mappings are large.
            Some(maps) if is_known || self.maps_shared_memory(&handle, &maps) => {
                self.locked(&handle, folder)?;
                // It may end under our hands; then the recording shows it as an audit would see it.
                let _ = self.mappings(&handle, &maps, folder)?;
            }
            Some(_) => fs::write(folder.join("maps"), "")?,
        }
        Ok(true)
    }

    fn maps_shared_memory(&self, handle: &Handle, maps: &[u8]) -> bool {
        let never = Deadline::never();
        let mut asked = self.devices.of(self.source, handle, &never);
        maps::lines(maps)
            .any(|line| matches!(interesting(&mut asked, self.source, handle, &line, maps), Ok(Some(_))))
    }

    /// `None` when the process ended meanwhile.
    fn mappings(&mut self, handle: &Handle, maps: &[u8], folder: &Path) -> Result<Option<()>> {
        let mut out = fs::File::create(folder.join("maps"))?;
        for line in maps::lines(maps) {
            out.write_all(&self.line(&line))?;
        }
        if let Ok(link) = fs::read_link(self.source.path(&format!("proc/{}/ns/ipc", handle.pid))) {
            fs::create_dir_all(folder.join("ns"))?;
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

    /// What of a process's status an audit asks for.
    fn status(&self, handle: &Handle, name: &str, status: &Process) -> String {
        let kilobytes = |bytes: u64| bytes >> 10;
        let mut out = format!(
            "Name:\t{name}\nPPid:\t{}\nVmSize:\t{:8} kB\nVmRSS:\t{:8} kB\nRssAnon:\t{:8} kB\nVmPTE:\t{:8} \
             kB\nHugetlbPages:\t{:8} kB\n",
            self.numbers.get(&status.parent).copied().unwrap_or(0),
            kilobytes(status.vm_size),
            kilobytes(status.rss),
            kilobytes(status.rss_anonymous),
            kilobytes(status.vm_pte),
            kilobytes(status.hugetlb)
        );
        let mut text = Vec::new();
        if collect::read(self.source, handle, "status", &mut text).is_ok() {
            let kept = ["Mems_allowed_list:"].into_iter().chain(self.names.is_none().then_some("Uid:"));
            let kept: Vec<&str> = kept.collect();
            for line in String::from_utf8_lossy(&text).lines() {
                if kept.iter().any(|start| line.starts_with(start)) {
                    out += &format!("{line}\n");
                }
            }
        }
        out
    }

    /// How much a process may lock.
    fn locked(&self, handle: &Handle, folder: &Path) -> Result<()> {
        let mut text = Vec::new();
        if collect::read(self.source, handle, "limits", &mut text).is_ok() {
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().find(|line| line.starts_with("Max locked memory")).unwrap_or_default();
            fs::write(folder.join("limits"), format!("{line}\n"))?;
        }
        Ok(())
    }

    /// Where a recording has control groups.
    fn control_groups_mounted(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder.join("proc/self"))?;
        let text = "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n1 1 0:2 / /sys/fs/cgroup/hugetlb rw - \
            cgroup cgroup rw,hugetlb\n";
        Ok(fs::write(folder.join("proc/self/mountinfo"), text)?)
    }

    /// A process's control groups, and the limits that are set for them.
    fn control_groups(&mut self, handle: &Handle, folder: &Path) -> Result<()> {
        let (unit, _) = unit::of(self.source, handle, &mut Vec::new());
        let mut text = String::new();
        let root = folder.parent().and_then(Path::parent).context("a folder of a process")?.to_path_buf();
        let folders: Vec<_> = self
            .groups
            .folders(self.source, handle.pid)
            .into_iter()
            .map(|one| (one.group.clone(), one.is_second, one.recorded(self.source, &self.pools)))
            .collect();
        let mut has = [false; 2];
        for (group, is_second, files) in folders {
            // A group outside of this control group namespace is told by a way up: nothing is written there.
            let parts = group.split('/').filter(|part| !["", ".", ".."].contains(part));
            let group: Vec<String> = parts.map(|part| self.group(part)).collect();
            let group = group.join("/");
            // The deepest comes first.
            if !std::mem::replace(&mut has[usize::from(is_second)], true) {
                text += &format!("{}:/{group}\n", if is_second { "0:" } else { "1:hugetlb" });
            }
            let place =
                root.join(if is_second { "sys/fs/cgroup" } else { "sys/fs/cgroup/hugetlb" }).join(&group);
            for (name, content) in files {
                fs::create_dir_all(&place)?;
                fs::write(place.join(name), content)?;
            }
        }
        let unit = self.unit(&unit);
        if unit::name(unit::group(&text)) != unit {
            text =
                text.lines().filter(|line| !line.starts_with("0:")).map(|line| format!("{line}\n")).collect();
            text += &format!("2:name=systemd:/{unit}\n");
        }
        Ok(fs::write(folder.join("cgroup"), text)?)
    }

    /// A part of a control group's path, or a number for it.
    fn group(&mut self, part: &str) -> String {
        match &mut self.names {
            _ if unit::is_unit(part) => self.unit(part),
            Some(names) => {
                let next = names.len() + 1;
                format!("group-{}", *names.entry(part.as_bytes().to_vec()).or_insert(next))
            }
            None => part.to_string(),
        }
    }

    /// Of a server the first process tells its settings; who reads a recording finds them where the server would.
    fn server(&mut self, pid: i32, parent: i32, folder: &Path) -> Result<()> {
        self.servers.insert(pid);
        if self.servers.contains(&parent) {
            return Ok(());
        }
        let Some(server) = postgres::server(self.source, pid) else { return Ok(()) };
        let Some(settings) = &server.settings else { return Ok(()) };
        let data = if self.names.is_none() { server.data.clone() } else { PathBuf::from("/data") };
        symlink(&data, folder.join("cwd"))?;
        let inside = |path: &Path| folder.join("root").join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(inside(&data))?;
        for (file, place) in [("postgresql.conf", Place::File), ("postgresql.auto.conf", Place::AlterSystem)]
        {
            fs::write(inside(&data).join(file), settings.of_interest(place))?;
        }
        let line = settings.of_interest(Place::CommandLine);
        let words: Vec<String> =
            line.lines().map(|line| format!("--{}", line.replace(" = ", "=").replace('\'', ""))).collect();
        fs::write(folder.join("cmdline"), format!("postgres\0{}", words.join("\0")))?;
        if self.names.is_none() {
            if let Some(programs) = &server.programs {
                symlink(programs.join("postgres"), folder.join("exe"))?;
            }
            if let Some((socket, port)) = &server.socket {
                fs::write(inside(&data).join("postmaster.pid"), format!("1\n\n\n{port}\n{socket}\n"))?;
            }
            if let Some(owner) = &server.owner
                && let Some(user) = postgres::user(self.source, pid)
                && self.owners.insert((user, owner.clone()))
            {
                let users = self.owners.iter().map(|(user, owner)| format!("{owner}:x:{user}:\n"));
                let etc = self.root.join("etc");
                fs::create_dir_all(&etc)?;
                fs::write(etc.join("passwd"), users.collect::<String>())?;
            }
        }
        if server.is_apart {
            // That of the reader is not recorded, and is another so.
            fs::create_dir_all(folder.join("ns"))?;
            symlink("mnt:[0]", folder.join("ns/mnt"))?;
        }
        Ok(())
    }

    /// What only the host's file systems tell of huge pages.
    fn held(&mut self, folder: &Path) -> Result<()> {
        // Where nothing can be seen there is nothing to record either.
        let Ok(host) = Host::look(self.source, Deadline::never(), false) else { return Ok(()) };
        let mut held = Held::look(&host);
        for open in &mut held.open {
            open.pids = open.pids.iter().filter_map(|pid| self.numbers.get(pid).copied()).collect();
            open.name = match open.name.strip_prefix("memfd ") {
                Some(name) => describe(&self.name(format!("/memfd:{name}").as_bytes()), 0),
                None => String::from_utf8_lossy(&self.name(open.name.as_bytes())).into_owned(),
            };
        }
        let number = |pid: &mut Option<i32>| *pid = pid.and_then(|pid| self.numbers.get(&pid).copied());
        held.mounts.iter_mut().for_each(|mount| number(&mut mount.inside));
        held.left.iter_mut().for_each(|file| {
            // One whose process is gone is still in another namespace.
            file.is_movable |= file.inside.is_some();
            number(&mut file.inside);
        });
        for path in held
            .mounts
            .iter_mut()
            .map(|mount| &mut mount.path)
            .chain(held.left.iter_mut().map(|file| &mut file.path))
        {
            *path = String::from_utf8_lossy(&self.name(path.as_bytes())).into_owned();
        }
        Ok(fs::write(folder.join(HELD), serde_json::to_string_pretty(&held)? + "\n")?)
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

    /// The populated ranges, those of huge pages cut at the ends of slots and mappings: each slot's first
    /// page is asked about.
    fn ranges(&self, handle: &Handle, pagemap: &mut Pagemap, maps: &[u8]) -> Result<Ranges> {
        let user = |line: &Line| line.start >> 63 == 0;
        let lines: Vec<Line> = maps::lines(maps).filter(user).collect();
        let areas: Vec<(u64, u64)> = lines.iter().map(|line| (line.start, line.end)).collect();
        let slot = self.source.geometry.slot();
        let mut ranges = Ranges::default();
        let _ = pagemap.populated(&areas, &Deadline::never(), |range| {
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
