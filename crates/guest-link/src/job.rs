//! The job file: what init shall run, and how.

use std::fmt;

/// Where the job file lies in the initramfs.
pub const PATH: &str = "/.roundtable/job";
/// Where init lies in a root file system that may have a first process of its own.
pub const INIT_PATH: &str = "/.roundtable/init";
/// Where the standard input lies in the initramfs when it is [`Input::File`].
pub const INPUT_PATH: &str = "/.roundtable/input";
/// The folder of the modules that the kernel needs for the machine's devices, to be loaded in the order of their names.
pub const MODULES_PATH: &str = "/.roundtable/modules";

/// What init shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The secret that marks init's frames; the job itself cannot know it.
    pub key: String,
    /// What to run.
    pub work: Work,
    /// `NAME=value` strings.
    pub environment: Vec<Vec<u8>>,
    /// Working directory in the guest.
    pub directory: Vec<u8>,
    /// Whom the job runs as, as [`crate::user::find`] reads it; root when absent.
    pub user: Option<String>,
    /// Where the job's standard input comes from.
    pub input: Input,
    /// Rows and columns of the user's terminal.
    pub window: Option<(u16, u16)>,
    /// Folders of the host that the machine has.
    pub volumes: Vec<Volume>,
}

/// A folder of the host that init shall mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// By what the machine's device is known; without blanks.
    pub tag: String,
    /// Where in the guest.
    pub path: Vec<u8>,
    /// Nothing in it may be changed.
    pub read_only: bool,
    /// The host's user and group to whom all that is made in it belongs; in the guest they are the job's. Absent where the host can give
    /// files to anybody.
    pub owner: Option<(u32, u32)>,
}

impl Volume {
    fn encode(&self) -> Vec<u8> {
        let access = if self.read_only { "ro" } else { "rw" };
        let owner = self.owner.map_or("-".to_string(), |(user, group)| format!("{user}:{group}"));
        [format!("{} {access} {owner} ", self.tag).as_bytes(), &self.path].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Volume> {
        let mut fields = bytes.splitn(4, |byte| *byte == b' ');
        let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
        let (tag, access, owner) = (text()?, text()?, text()?);
        let read_only = match access {
            "ro" => true,
            "rw" => false,
            _ => return None,
        };
        let owner = match owner.split_once(':') {
            Some((user, group)) => Some((user.parse().ok()?, group.parse().ok()?)),
            None if owner == "-" => None,
            None => return None,
        };
        Some(Volume { tag: tag.into(), path: fields.next()?.to_vec(), read_only, owner })
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// One program, whose ending is the machine's.
    Run {
        /// Path in the guest.
        path: Vec<u8>,
        /// All arguments, the program's name first.
        arguments: Vec<Vec<u8>>,
    },
    /// Test programs, one after the other, each reported on its own.
    Tests(Vec<Test>),
}

/// One test program of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Path in the guest.
    pub path: Vec<u8>,
    /// All arguments, the program's name first.
    pub arguments: Vec<Vec<u8>>,
    /// Seconds after which it is killed.
    pub limit: u32,
}

/// Where the job's standard input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// `/dev/null`.
    Null,
    /// A pseudoterminal, which is the job's controlling terminal and its output too. Init carries what is
    /// typed and its size from the stuffed stream on the console, and what it shows to the console.
    Terminal,
    /// A pipe that init fills from the stuffed stream on the console.
    Relay,
    /// A file in the initramfs: what is known before the boot need not go through the console.
    File,
}

/// A job file that init cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadJob(String);

impl fmt::Display for BadJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the job file is not one of ours: {}", self.0)
    }
}

impl std::error::Error for BadJob {}

impl Job {
    /// The job file's bytes: NUL-terminated names and values in turn, since no argument contains a NUL.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |name: &str, value: &[u8]| {
            out.extend_from_slice(name.as_bytes());
            out.push(0);
            out.extend_from_slice(value);
            out.push(0);
        };
        put("key", self.key.as_bytes());
        for variable in &self.environment {
            put("environment", variable);
        }
        put("directory", &self.directory);
        if let Some(user) = &self.user {
            put("user", user.as_bytes());
        }
        put(
            "input",
            match self.input {
                Input::Null => b"null",
                Input::Terminal => b"terminal",
                Input::Relay => b"relay",
                Input::File => b"file",
            },
        );
        if let Some((rows, columns)) = self.window {
            put("window", format!("{rows} {columns}").as_bytes());
        }
        for volume in &self.volumes {
            put("volume", &volume.encode());
        }
        match &self.work {
            Work::Run { path, arguments } => {
                put("run", path);
                arguments.iter().for_each(|argument| put("argument", argument));
            }
            Work::Tests(tests) => {
                put("tests", b"");
                for test in tests {
                    put("test", &test.path);
                    put("limit", test.limit.to_string().as_bytes());
                    test.arguments.iter().for_each(|argument| put("argument", argument));
                }
            }
        }
        out
    }

    /// Reads what [`Job::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Job, BadJob> {
        let bad = |what: &str| BadJob(what.to_string());
        let mut job = Job {
            key: String::new(),
            work: Work::Tests(Vec::new()),
            environment: Vec::new(),
            directory: b"/".to_vec(),
            user: None,
            input: Input::Null,
            window: None,
            volumes: Vec::new(),
        };
        let body = bytes.strip_suffix(&[0]).ok_or_else(|| bad("it does not end with a NUL"))?;
        let mut strings = body.split(|&byte| byte == 0);
        let mut has_work = false;
        while let Some(name) = strings.next() {
            let value = strings.next().ok_or_else(|| bad("a name without a value"))?;
            let text = || std::str::from_utf8(value).map_err(|_| bad("a value that is not UTF-8"));
            match name {
                b"key" => job.key = text()?.to_string(),
                b"environment" => job.environment.push(value.to_vec()),
                b"directory" => job.directory = value.to_vec(),
                b"user" => job.user = Some(text()?.to_string()),
                b"input" => {
                    job.input = match value {
                        b"null" => Input::Null,
                        b"terminal" => Input::Terminal,
                        b"relay" => Input::Relay,
                        b"file" => Input::File,
                        _ => return Err(bad("an unknown input")),
                    }
                }
                b"window" => {
                    let (rows, columns) = text()?.split_once(' ').ok_or_else(|| bad("window"))?;
                    let number = |text: &str| text.parse().map_err(|_| bad("window"));
                    job.window = Some((number(rows)?, number(columns)?));
                }
                b"volume" => job.volumes.push(Volume::decode(value).ok_or_else(|| bad("volume"))?),
                b"run" => {
                    has_work = true;
                    job.work = Work::Run { path: value.to_vec(), arguments: Vec::new() };
                }
                b"tests" => has_work = true,
                b"test" => match &mut job.work {
                    Work::Tests(tests) => {
                        tests.push(Test { path: value.to_vec(), arguments: Vec::new(), limit: 60 });
                    }
                    Work::Run { .. } => return Err(bad("a test beside a job")),
                },
                b"limit" => {
                    let limit = text()?.parse().map_err(|_| bad("limit"))?;
                    match &mut job.work {
                        Work::Tests(tests) => tests.last_mut().ok_or_else(|| bad("limit"))?.limit = limit,
                        Work::Run { .. } => return Err(bad("limit")),
                    }
                }
                b"argument" => match &mut job.work {
                    Work::Run { arguments, .. } => arguments.push(value.to_vec()),
                    Work::Tests(tests) => {
                        let test = tests.last_mut().ok_or_else(|| bad("an argument for nothing"))?;
                        test.arguments.push(value.to_vec());
                    }
                },
                _ => return Err(bad("an unknown name")),
            }
        }
        if job.key.is_empty() || !has_work {
            return Err(bad("no key or no work"));
        }
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(work: Work) -> Job {
        Job {
            key: "0123456789abcdef".into(),
            work,
            environment: vec![b"PATH=/bin".to_vec(), b"EMPTY=".to_vec()],
            directory: b"/tmp".to_vec(),
            user: Some("nobody:0".into()),
            input: Input::Relay,
            window: Some((24, 80)),
            volumes: vec![
                Volume {
                    tag: "volume0".into(),
                    path: b"/a b".to_vec(),
                    read_only: false,
                    owner: Some((1000, 100)),
                },
                Volume { tag: "volume1".into(), path: b"/c".to_vec(), read_only: true, owner: None },
            ],
        }
    }

    #[test]
    fn a_run_survives_the_file() {
        let arguments = vec![b"sh".to_vec(), b"-c".to_vec(), b"".to_vec(), b"\xff\n".to_vec()];
        let run = job(Work::Run { path: b"/bin/sh".to_vec(), arguments });
        assert_eq!(Job::decode(&run.encode()), Ok(run));
    }

    #[test]
    fn a_batch_of_tests_survives_the_file() {
        let test = |name: &str, limit| Test {
            path: format!("/bin/{name}").into_bytes(),
            arguments: vec![name.as_bytes().to_vec()],
            limit,
        };
        let tests = job(Work::Tests(vec![test("test_mmap", 10), test("test_fork", 90)]));
        assert_eq!(Job::decode(&tests.encode()), Ok(tests));
        let none = job(Work::Tests(vec![]));
        assert_eq!(Job::decode(&none.encode()), Ok(none));
    }

    #[test]
    fn every_kind_of_input_survives_the_file() {
        for input in [Input::Null, Input::Terminal, Input::Relay, Input::File] {
            let job = Job { input, ..job(Work::Tests(vec![])) };
            assert_eq!(Job::decode(&job.encode()), Ok(job));
        }
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let good = job(Work::Run { path: b"/x".to_vec(), arguments: vec![] }).encode();
        assert!(Job::decode(&good[..good.len() - 1]).is_err());
        assert!(Job::decode(b"").is_err());
        assert!(Job::decode(b"key\0k\0").is_err());
        assert!(Job::decode(b"key\0k\0run\0/x\0limit\x007\0").is_err());
        assert!(Job::decode(b"key\0k\0tests\0\0argument\0a\0").is_err());
        assert!(Job::decode(b"key\0k\0volume\0v rw 1 /a\0tests\0\0").is_err());
    }
}
