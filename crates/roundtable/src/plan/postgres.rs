//! What postgresql.conf says about shared memory, and how much of it PostgreSQL makes of that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Files included in one another no deeper than this, as PostgreSQL has it.
const DEPTH: usize = 10;

/// The settings of a configuration, by name in small letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads a configuration file and what it includes.
    pub fn read(path: &Path) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.add_file(path, 0)?;
        Ok(settings)
    }

    fn add_file(&mut self, path: &Path, depth: usize) -> Result<()> {
        if depth > DEPTH {
            bail!("{}: files include each other deeper than {DEPTH} times", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{}:{}", path.display(), number + 1);
            let Some((name, value)) = parse_line(line).with_context(place)? else { continue };
            match name.as_str() {
                "include" => self.add_file(&folder.join(&value), depth + 1).with_context(place)?,
                "include_if_exists" => {
                    let file = folder.join(&value);
                    if file.exists() {
                        self.add_file(&file, depth + 1).with_context(place)?;
                    }
                }
                "include_dir" => {
                    for file in configuration_files(&folder.join(&value)).with_context(place)? {
                        self.add_file(&file, depth + 1).with_context(place)?;
                    }
                }
                _ => {
                    self.0.insert(name, value);
                }
            }
        }
        Ok(())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A number of things.
    fn count(&self, name: &str, default: u64) -> Result<u64> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.trim().parse().with_context(|| format!("{name} = {text}: not a number"))
    }

    /// A size in bytes; numbers without a unit are in `unit`.
    fn size(&self, name: &str, unit: u64, default: u64) -> Result<u64> {
        let Some(text) = self.text(name) else { return Ok(default) };
        parse_size(text, unit).with_context(|| format!("{name} = {text}: not a size"))
    }

    /// Bytes of `shared_buffers`.
    pub fn shared_buffers(&self) -> Result<u64> {
        self.size("shared_buffers", 8 << 10, 128 << 20)
    }

    /// `max_connections`.
    pub fn max_connections(&self) -> Result<u64> {
        self.count("max_connections", 100)
    }

    /// Processes that map the shared memory when all connections are in use.
    pub fn processes(&self) -> Result<u64> {
        Ok(self.backends()?.connections + self.backends()?.others + AUXILIARY)
    }

    fn backends(&self) -> Result<Backends> {
        let workers = self.count("max_worker_processes", 8)?;
        let senders = self.count("max_wal_senders", 10)?;
        let vacuum = self.count("autovacuum_max_workers", 3)? + 1;
        Ok(Backends { connections: self.max_connections()?, others: workers + senders + vacuum })
    }

    /// Bytes of the shared memory, close to what PostgreSQL 15 asks for: the parts that grow with a setting one by one, by
    /// its sources and by what `postgres -C shared_memory_size` says when only that setting changes. Extensions in
    /// shared_preload_libraries may ask for more.
    pub fn shared_memory(&self) -> Result<u64> {
        let buffers = self.shared_buffers()? / BLOCK;
        let backends = self.backends()?;
        let all = backends.connections + backends.others + self.count("max_prepared_transactions", 0)?;
        // The buffer, its descriptor, its lock, its place in a checkpoint, its entry in the hash table, its request to be
        // synchronised; and the table's buckets.
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
        Ok(pool + wal + all * per_backend + states + fixed + dynamic)
    }

    /// Bytes of `huge_page_size`, 0 for the system's own.
    pub fn huge_page_size(&self) -> Result<u64> {
        self.size("huge_page_size", 1 << 10, 0)
    }

    /// Whether huge pages are off.
    pub fn huge_pages_off(&self) -> bool {
        self.text("huge_pages")
            .is_some_and(|value| ["off", "false", "no", "0"].contains(&value.to_lowercase().as_str()))
    }
}

/// Processes that are no backends: postmaster, checkpointer, writers, archiver, logger.
const AUXILIARY: u64 = 6;
const BLOCK: u64 = 8192;

struct Backends {
    connections: u64,
    others: u64,
}

fn configuration_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".conf") && !name.starts_with('.')
    });
    files.sort();
    Ok(files)
}

/// `name = value`, the equals sign left out or not, the value quoted or not; `None` for a line that sets nothing.
fn parse_line(line: &str) -> Result<Option<(String, String)>> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_alphanumeric() || "_.".contains(c))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        bail!("not a setting: {line}");
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        None => rest.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or_default().to_string(),
        Some(quoted) => {
            let mut value = String::new();
            let mut chars = quoted.chars().peekable();
            loop {
                match chars.next() {
                    None => bail!("a quote is missing: {line}"),
                    Some('\'') if chars.peek() == Some(&'\'') => {
                        chars.next();
                        value.push('\'');
                    }
                    Some('\\') => value.extend(chars.next()),
                    Some('\'') => break,
                    Some(c) => value.push(c),
                }
            }
            value
        }
    };
    if value.is_empty() && !rest.starts_with('\'') {
        bail!("{name} has no value");
    }
    Ok(Some((name.to_lowercase(), value)))
}

/// A size with PostgreSQL's units, whose case counts.
fn parse_size(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let factor = match text[digits..].trim() {
        "" => unit,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = text[..digits].split_once('.').unwrap_or((&text[..digits], ""));
    let whole: u64 = whole.parse().ok()?;
    let part = match fraction {
        "" => 0,
        fraction => {
            let scale = 10u128.checked_pow(fraction.len() as u32)?;
            u64::try_from(fraction.parse::<u128>().ok()? * u128::from(factor) / scale).ok()?
        }
    };
    whole.checked_mul(factor)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(!settings.huge_pages_off());
    }

    #[test]
    fn sizes_have_postgres_units() {
        for (text, bytes) in
            [("16384", 16384 * 8192), ("8kB", 8192), ("1.5GB", 3 << 29), ("1TB", 1 << 40), ("4 MB", 4 << 20)]
        {
            assert_eq!(parse_size(text, 8192), Some(bytes), "{text}");
        }
        for text in ["", "x", "1gb", "1KB", "-1", "99999999TB"] {
            assert_eq!(parse_size(text, 8192), None, "{text}");
        }
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

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in ["= 1", "shared_buffers", "x = 'open", "shared_buffers = many"] {
            assert!(settings(text).and_then(|settings| settings.shared_buffers()).is_err(), "{text}");
        }
    }
}
