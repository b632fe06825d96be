//! What PostgreSQL's configuration says about shared memory, and how much of it PostgreSQL makes of that.

pub mod files;
pub mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::files::{Files, parse_line};

/// Files included in one another no deeper than this, as PostgreSQL has it.
const DEPTH: usize = 10;
const CONF: &str = "postgresql.conf";
const AUTO: &str = "postgresql.auto.conf";

/// The settings that tell of the shared memory and of the processes that map it.
const OF_MEMORY: [&str; 15] = [
    "autovacuum_max_workers",
    "huge_page_size",
    "huge_pages",
    "max_connections",
    "max_locks_per_transaction",
    "max_pred_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
    "min_dynamic_shared_memory",
    "port",
    "shared_buffers",
    "shared_memory_type",
    "superuser_reserved_connections",
    "wal_buffers",
];

/// Where a setting comes from. The later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// postgresql.conf, or a file that it includes.
    File,
    /// postgresql.auto.conf, which ALTER SYSTEM writes.
    AlterSystem,
    /// The command line, above which no file has a say.
    CommandLine,
}

/// The settings of a configuration, by name in small letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, (String, Place)>);

impl Settings {
    /// Reads a configuration file and what it includes, or that of a data folder; with it what ALTER SYSTEM
    /// has set, and in a data folder the command line that the server was started with last.
    pub fn read(path: &Path) -> Result<Settings> {
        let files = Files::below(Path::new("/"));
        if !files.has_folder(path) {
            return Settings::of(&files, path, None, &[]);
        }
        let options = path.join("postmaster.opts");
        let arguments = match files.has(&options)? {
            true => quoted_words(&files.text(&options)?),
            false => Vec::new(),
        };
        let named = overrides(&arguments).into_iter().rfind(|(name, _)| name == "config_file");
        let conf = named.map_or_else(|| path.join(CONF), |(_, value)| path.join(value));
        Settings::of(&files, &conf, Some(path), &arguments)
    }

    /// Reads those of a running server: its files as it sees them, by its data folder and its command line.
    pub fn of_server(files: &Files, data: &Path, arguments: &[String]) -> Result<Settings> {
        let named = overrides(arguments).into_iter().rfind(|(name, _)| name == "config_file");
        let conf = named.map_or_else(|| data.join(CONF), |(_, value)| data.join(value));
        Settings::of(files, &conf, Some(data), arguments)
    }

    fn of(files: &Files, conf: &Path, data: Option<&Path>, arguments: &[String]) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.add_file(files, conf, Place::File, 0)?;
        let named = settings.text("data_directory").map(PathBuf::from);
        let beside = conf.parent().map(Path::to_path_buf);
        let data = data.map(Path::to_path_buf).or(named).or(beside).unwrap_or_default();
        let auto = data.join(AUTO);
        if files.has(&auto)? {
            settings.add_file(files, &auto, Place::AlterSystem, 0)?;
        }
        for (name, value) in overrides(arguments) {
            settings.0.insert(name, (value, Place::CommandLine));
        }
        Ok(settings)
    }

    fn add_file(&mut self, files: &Files, path: &Path, from: Place, depth: usize) -> Result<()> {
        if depth > DEPTH {
            bail!("{}: files include each other deeper than {DEPTH} times", path.display());
        }
        let text = files.text(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{}:{}", path.display(), number + 1);
            let Some((name, value)) = parse_line(line).with_context(place)? else { continue };
            match name.as_str() {
                "include" => {
                    self.add_file(files, &folder.join(&value), from, depth + 1).with_context(place)?;
                }
                "include_if_exists" => {
                    let file = folder.join(&value);
                    if files.has(&file).with_context(place)? {
                        self.add_file(files, &file, from, depth + 1).with_context(place)?;
                    }
                }
                "include_dir" => {
                    for file in files.configuration_files(&folder.join(&value)).with_context(place)? {
                        self.add_file(files, &file, from, depth + 1).with_context(place)?;
                    }
                }
                _ => {
                    self.0.insert(name, (value, from));
                }
            }
        }
        Ok(())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    /// Where a setting comes from; `None` for a default.
    pub fn place(&self, name: &str) -> Option<Place> {
        self.0.get(name).map(|(_, place)| *place)
    }

    /// Those settings from one place that tell of the memory, as lines of a file.
    pub fn of_interest(&self, from: Place) -> String {
        let all =
            self.0.iter().filter(|(name, (_, place))| *place == from && OF_MEMORY.contains(&name.as_str()));
        all.map(|(name, (value, _))| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect()
    }

    /// A number of things.
    fn count(&self, name: &str, default: u64) -> Result<u64> {
        let Some(text) = self.text(name) else { return Ok(default) };
        value::count(text).with_context(|| format!("{name} = {text}"))
    }

    /// A number of processes, which PostgreSQL limits.
    fn processes_of(&self, name: &str, default: u64) -> Result<u64> {
        let count = self.count(name, default)?;
        if count > MAX_BACKENDS {
            bail!("{name} = {count}: PostgreSQL has {MAX_BACKENDS} processes at the most");
        }
        Ok(count)
    }

    /// A size in bytes; numbers without a unit are in `unit`.
    fn size(&self, name: &str, unit: u64, default: u64) -> Result<u64> {
        let Some(text) = self.text(name) else { return Ok(default) };
        value::bytes(text, unit).with_context(|| format!("{name} = {text}"))
    }

    /// Bytes of `shared_buffers`.
    pub fn shared_buffers(&self) -> Result<u64> {
        self.size("shared_buffers", 8 << 10, 128 << 20)
    }

    /// `max_connections`.
    pub fn max_connections(&self) -> Result<u64> {
        self.processes_of("max_connections", 100)
    }

    /// Processes that map the shared memory when all connections are in use.
    pub fn processes(&self) -> Result<u64> {
        Ok(self.backends()?.connections + self.backends()?.others + AUXILIARY)
    }

    fn backends(&self) -> Result<Backends> {
        let workers = self.processes_of("max_worker_processes", 8)?;
        let senders = self.processes_of("max_wal_senders", 10)?;
        let vacuum = self.processes_of("autovacuum_max_workers", 3)? + 1;
        Ok(Backends { connections: self.max_connections()?, others: workers + senders + vacuum })
    }

    /// Bytes of the shared memory, close to what PostgreSQL 15 asks for: the parts that grow with a setting
    /// one by one, by its sources and by what `postgres -C shared_memory_size` says when only that setting
    /// changes. Extensions in shared_preload_libraries may ask for more.
    pub fn shared_memory(&self) -> Result<u64> {
        let buffers = self.shared_buffers()? / BLOCK;
        let backends = self.backends()?;
        let all =
            backends.connections + backends.others + self.processes_of("max_prepared_transactions", 0)?;
        // The buffer, its descriptor, its lock, its place in a checkpoint, its entry in the hash table, its
        // request to be synchronised; and the table's buckets.
        let each = BLOCK + 64 + 16 + 20 + 40 + 24;
        let pool = buffers
            .checked_mul(each)
            .and_then(|bytes| bytes.checked_add((buffers + 128).checked_next_power_of_two()? * 8))
            .context("shared_buffers is larger than any memory")?;
        let wal = match self.text("wal_buffers") {
            None | Some("-1") => (buffers / 32).clamp(8, 2048) * BLOCK,
            Some(_) => self.size("wal_buffers", BLOCK, 0)?,
        };
        let locks = self.count("max_locks_per_transaction", 64)?;
        let predicates = self.count("max_pred_locks_per_transaction", 64)?;
        let per_backend = 9_900 + locks * 387 + predicates * 241;
        // The caches of commit states and commit times.
        let states = ((buffers / 512).clamp(4, 128) + (buffers / 256).clamp(4, 256)) * (BLOCK + 64);
        let fixed = 2_300_000;
        let dynamic = self.size("min_dynamic_shared_memory", 1 << 20, 0)?;
        // Both factors are below 2^43 and 2^21.
        [wal, all.saturating_mul(per_backend), states, fixed, dynamic]
            .into_iter()
            .try_fold(pool, u64::checked_add)
            .context("that is larger than any memory")
    }

    /// Bytes of `huge_page_size`, 0 for the system's own.
    pub fn huge_page_size(&self) -> Result<u64> {
        self.size("huge_page_size", 1 << 10, 0)
    }

    /// `huge_pages`: what the server does about them when it starts.
    pub fn huge_pages(&self) -> HugePages {
        match self.text("huge_pages").unwrap_or_default().to_lowercase().as_str() {
            // PostgreSQL takes each name of a truth value that is not ambiguous.
            "off" | "of" | "false" | "fals" | "fal" | "fa" | "f" | "no" | "n" | "0" => HugePages::Off,
            "on" | "true" | "tru" | "tr" | "t" | "yes" | "ye" | "y" | "1" => HugePages::On,
            _ => HugePages::Try,
        }
    }

    /// Whether the memory is a SysV segment, which cannot be of huge pages: `shared_memory_type=sysv`.
    pub fn is_sysv(&self) -> bool {
        self.text("shared_memory_type").is_some_and(|kind| kind.eq_ignore_ascii_case("sysv"))
    }
}

/// What a server does about huge pages when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// It takes base pages.
    Off,
    /// It takes huge pages, and base pages without a word where there are too few; the default.
    Try,
    /// It takes huge pages, and ends where there are too few.
    On,
}

impl HugePages {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            HugePages::Off => "off",
            HugePages::Try => "try",
            HugePages::On => "on",
        }
    }
}

/// The settings of a command line of the server's.
fn overrides(arguments: &[String]) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut arguments = arguments.iter();
    // PostgreSQL takes dashes for underscores here.
    let assignment = |text: &str| {
        let (name, value) = text.split_once('=')?;
        Some((name.replace('-', "_").to_lowercase(), value.to_string()))
    };
    while let Some(argument) = arguments.next() {
        if let Some(long) = argument.strip_prefix("--") {
            settings.extend(assignment(long));
            continue;
        }
        for (flag, name) in [("-c", ""), ("-B", "shared_buffers"), ("-N", "max_connections")] {
            let Some(value) = argument.strip_prefix(flag) else { continue };
            let next = if value.is_empty() { arguments.next().map(String::as_str) } else { Some(value) };
            let Some(value) = next else { continue };
            settings.extend(if name.is_empty() {
                assignment(value)
            } else {
                Some((name.to_string(), value.to_string()))
            });
            break;
        }
    }
    settings
}

/// The words of postmaster.opts: the program, and its arguments in double quotes.
fn quoted_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = text.trim_end().chars().peekable();
    while chars.peek().is_some() {
        let mut word = String::new();
        let mut is_quoted = false;
        while let Some(c) = chars.next_if(|c| is_quoted || *c != ' ') {
            match c {
                '"' => is_quoted = !is_quoted,
                '\\' if is_quoted => word.extend(chars.next()),
                c => word.push(c),
            }
        }
        chars.next();
        words.push(word);
    }
    words
}

/// Processes that are no backends: postmaster, checkpointer, writers, archiver, logger.
const AUXILIARY: u64 = 6;
const BLOCK: u64 = 8192;
/// What PostgreSQL calls MAX_BACKENDS.
const MAX_BACKENDS: u64 = 0x3_ffff;

struct Backends {
    connections: u64,
    others: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may name a process as a server is named writes its configuration.
    #[test]
    fn a_tree_of_includes_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for depth in 0..10 {
            let line = format!("include 'f{}'\n", depth + 1);
            let name = if depth == 0 { CONF.into() } else { format!("f{depth}") };
            std::fs::write(path(&name), line.repeat(10)).unwrap();
        }
        std::fs::write(path("f10"), "port = 1\n").unwrap();
        let said = |path: &Path| format!("{:#}", Settings::read(path).unwrap_err());
        assert!(said(&path(CONF)).contains("more than 1000 files"), "{}", said(&path(CONF)));
        // Those that are not there are asked for as often.
        std::fs::write(path(CONF), "include_if_exists 'none'\n".repeat(2000)).unwrap();
        assert!(said(&path(CONF)).contains("more than 1000 files"), "{}", said(&path(CONF)));
        // Few files, and large ones.
        std::fs::write(path("large"), "# as long as a line may well be\n".repeat(1 << 17)).unwrap();
        std::fs::write(path(CONF), "include 'large'\n".repeat(100)).unwrap();
        assert!(said(&path(CONF)).contains("larger than 16 MiB"), "{}", said(&path(CONF)));
        let many = path("many");
        std::fs::create_dir(&many).unwrap();
        (0..1001).for_each(|number| std::fs::write(many.join(number.to_string()), "").unwrap());
        std::fs::write(path(CONF), "include_dir 'many'\n").unwrap();
        assert!(said(&path(CONF)).contains("more than 1000 entries"), "{}", said(&path(CONF)));
    }

    fn settings(text: &str) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgresql.conf");
        std::fs::write(&path, text).unwrap();
        Settings::read(&path)
    }

    #[test]
    fn a_configuration_is_read_as_postgres_reads_it() {
        let text = "# comment\nshared_buffers = 1GB # behind\nMax_Connections 300\n\nhuge_page_size='2MB'\n\
            search_path = '\"$user\", it''s'\nshared_buffers = 2GB\nmy.extension = 1\n";
        let settings = settings(text).unwrap();
        assert_eq!(settings.shared_buffers().unwrap(), 2 << 30, "the last one counts");
        assert_eq!(settings.max_connections().unwrap(), 300);
        assert_eq!(settings.huge_page_size().unwrap(), 2 << 20);
        assert_eq!(settings.text("search_path"), Some("\"$user\", it's"));
    }

    #[test]
    fn what_is_not_set_has_its_default() {
        let settings = settings("").unwrap();
        assert_eq!(
            (settings.shared_buffers().unwrap(), settings.max_connections().unwrap()),
            (128 << 20, 100)
        );
        assert_eq!(settings.huge_pages(), HugePages::Try);
    }

    #[test]
    fn includes_are_followed_and_loops_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("conf.d")).unwrap();
        put("postgresql.conf", "include 'a.conf'\ninclude_if_exists = 'none.conf'\ninclude_dir 'conf.d'\n");
        put("a.conf", "shared_buffers = 1GB\nmax_connections = 7\n");
        put("conf.d/1.conf", "max_connections = 8\n");
        put("conf.d/2.conf.off", "max_connections = 9\n");
        let settings = Settings::read(&folder.path().join("postgresql.conf")).unwrap();
        assert_eq!((settings.shared_buffers().unwrap(), settings.max_connections().unwrap()), (1 << 30, 8));
        put("a.conf", "include 'postgresql.conf'\n");
        assert!(Settings::read(&folder.path().join("postgresql.conf")).is_err());
        assert!(Settings::read(&folder.path().join("no.conf")).is_err());
    }

    /// What PostgreSQL 15 says with `postgres -C shared_memory_size`, in MiB.
    #[test]
    fn shared_memory_is_what_postgres_asks_for() {
        for (buffers, connections, expected) in [
            ("128MB", 100, 143),
            ("128MB", 1000, 184),
            ("1GB", 100, 1074),
            ("1GB", 1000, 1115),
            ("8GB", 100, 8399),
            ("8GB", 1000, 8441),
            ("64GB", 100, 67004),
            ("64GB", 1000, 67045),
        ] {
            let text = format!("shared_buffers = {buffers}\nmax_connections = {connections}\n");
            let bytes = settings(&text).unwrap().shared_memory().unwrap();
            let seen = bytes.div_ceil(1 << 20);
            assert!(
                (expected..=expected + 4).contains(&seen),
                "{buffers} {connections}: {seen}, {expected} expected"
            );
        }
    }

    /// Of a data folder all has a say: the file, what ALTER SYSTEM has set, and the command line of the last start.
    #[test]
    fn a_data_folder_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put(CONF, "shared_buffers = 1GB\nmax_connections = 10\nhuge_pages = on\n");
        put(AUTO, "# by ALTER SYSTEM\nmax_connections = '20'\nhuge_pages = 'off'\n");
        let settings = Settings::read(folder.path()).unwrap();
        assert_eq!((settings.max_connections().unwrap(), settings.huge_pages()), (20, HugePages::Off));
        assert_eq!(settings.place("huge_pages"), Some(Place::AlterSystem));
        assert_eq!(Settings::read(&folder.path().join(CONF)).unwrap(), settings, "the file in it as well");
        put("other.conf", "shared_buffers = 2GB\n");
        let other = folder.path().join("other.conf");
        put(
            "postmaster.opts",
            &format!(
                "/usr/bin/postgres \"-D\" \"/data\" \"-c\" \"config_file={}\" \"--max-connections=30\" \
                 \"-B\" \"1000\"\n",
                other.display()
            ),
        );
        let settings = Settings::read(folder.path()).unwrap();
        assert_eq!(
            (settings.max_connections().unwrap(), settings.shared_buffers().unwrap()),
            (30, 1000 * 8192)
        );
        assert_eq!(settings.place("max_connections"), Some(Place::CommandLine));
        assert_eq!(settings.huge_pages(), HugePages::Off);
    }

    #[test]
    fn a_byte_that_is_not_utf_8_is_no_reason_to_refuse_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONF);
        std::fs::write(&path, b"# f\xfcr alle\nmax_connections = 5\n").unwrap();
        assert_eq!(Settings::read(&path).unwrap().max_connections().unwrap(), 5);
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in ["= 1", "shared_buffers", "x = 'open", "shared_buffers = many"] {
            assert!(settings(text).and_then(|settings| settings.shared_buffers()).is_err(), "{text}");
        }
    }
}
