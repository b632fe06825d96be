//! Presets: what to run in a guest, in files that anybody can read and copy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::options::RunOptions;

/// How the names of presets end.
const ENDING: &str = "toml";

/// What a preset's file says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Preset {
    /// One line for the list.
    pub about: String,
    /// Debian packages; what they depend on comes with them.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Our own programs, to be put below `/bin`.
    #[serde(default)]
    pub programs: Vec<String>,
    /// Whom the steps run as.
    pub user: Option<String>,
    /// Where they run.
    pub workdir: Option<String>,
    /// The machine's memory, such as `4G`.
    pub memory: Option<String>,
    /// Huge pages of 2 MiB at boot.
    pub huge_2m: Option<u64>,
    /// Variables of the environment; `--env` overrides them.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// What is done, in this order, by one shell.
    pub steps: Vec<Step>,
}

/// One step of a preset.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it does, in a few words.
    pub name: String,
    /// Commands for the shell. The first that fails ends the run.
    pub run: String,
}

impl Preset {
    /// The preset that a run asks for by its program's name: a name in `folder`, or the path of a file.
    pub fn find(options: &RunOptions, folder: &Path) -> Result<Option<Preset>> {
        let Some(name) = options.program.first().filter(|_| options.root.is_none()) else { return Ok(None) };
        let path = Path::new(name);
        let path = match path.components().count() {
            1 if path.extension().is_none() => folder.join(path).with_extension(ENDING),
            _ if path.extension().is_some_and(|ending| ending == ENDING) => path.to_path_buf(),
            _ => return Ok(None),
        };
        if !path.is_file() {
            return Ok(None);
        }
        Preset::read(&path).map(Some)
    }

    /// Reads a preset's file.
    pub fn read(path: &Path) -> Result<Preset> {
        let parse = || {
            let preset: Preset = toml::from_str(&fs::read_to_string(path)?)?;
            ensure!(!preset.steps.is_empty(), "it has no steps");
            anyhow::Ok(preset)
        };
        parse().with_context(|| path.display().to_string())
    }

    /// The names in a folder, and what each is about.
    pub fn list(folder: &Path) -> Result<Vec<(String, String)>> {
        let mut list = Vec::new();
        let missing = || format!("{}: `cargo xtask build` puts the presets there", folder.display());
        let entries = fs::read_dir(folder).with_context(missing)?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|_| path.extension().is_some_and(|ending| ending == ENDING)) {
                list.push((name.to_string(), Preset::read(&path)?.about));
            }
        }
        list.sort();
        Ok(list)
    }

    /// The run that it stands for. What the user gave goes before what the preset says.
    pub fn apply(&self, given: &RunOptions, programs: &Path) -> Result<RunOptions> {
        let mut options = given.clone();
        if options.memory.is_none() {
            let memory = self.memory.as_ref().map(|text| text.parse()).transpose();
            options.memory = memory.map_err(|error| anyhow::anyhow!("memory: {error}"))?;
        }
        options.huge_2m = given.huge_2m.or(self.huge_2m);
        options.user = given.user.clone().or(self.user.clone());
        options.workdir = given.workdir.clone().or(self.workdir.clone());
        options.packages = self.packages.iter().chain(&given.packages).cloned().collect();
        let own = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        options.environment = own.chain(given.environment.iter().cloned()).collect();
        for name in &self.programs {
            options.files.push(format!("{}:/bin/{name}", programs.join(name).display()));
        }
        options.program = ["/bin/sh", "-c", &self.script()].map(OsString::from).to_vec();
        // The preset's name is `$0`, and what follows it are the steps' arguments.
        options.program.extend(given.program.iter().cloned());
        Ok(options)
    }

    /// All steps as one script.
    fn script(&self) -> String {
        let mut script = String::from(
            "figure() { printf 'figure: %s | %s | %s\\n' \"$1\" \"$2\" \"$3\"; }\n\
             trap 'status=$?; [ $status = 0 ] || echo \"The step \\\"$step\\\" failed with status $status.\"' EXIT\n\
             set -e\n",
        );
        for step in &self.steps {
            let name = step.name.replace('\'', "'\\''");
            script.push_str(&format!("step='{name}'; echo \"== $step\"\n{}\n", step.run));
        }
        script
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::PathBuf;
    use std::process::Command;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunOptions,
    }

    fn given(words: &[&str]) -> RunOptions {
        Cli::try_parse_from(std::iter::once(&"run").chain(words)).unwrap().run
    }

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../presets")
    }

    const TEXT: &str = "about = 'a test'\nuser = 'someone'\nhuge-2m = 4\n[environment]\nA = 'x'\n\
        [[steps]]\nname = \"it's first\"\nrun = 'figure \"a row\" speed 5; echo $0 $1'\n\
        [[steps]]\nname = 'second'\nrun = 'false; echo not reached'\n";

    fn preset() -> Preset {
        toml::from_str(TEXT).unwrap()
    }

    #[test]
    fn all_of_ours_are_read() {
        let list = Preset::list(&folder()).unwrap();
        assert!(list.iter().any(|(name, _)| name == "postgres"), "{list:?}");
        for (name, about) in list {
            assert!(!about.contains('\n') && about.len() < 100, "{name}: {about}");
            let found = Preset::find(&given(&["--", &name]), &folder()).unwrap().unwrap();
            let status = Command::new("sh").args(["-n", "-c", &found.script()]).status().unwrap();
            assert!(status.success(), "{name}: the shell does not read its steps");
            found.apply(&given(&["--", &name]), Path::new("/programs")).unwrap();
        }
    }

    #[test]
    fn a_program_by_its_path_is_no_preset() {
        let find = |words: &[&str]| Preset::find(&given(words), &folder()).unwrap();
        assert_eq!(find(&["--", "/usr/bin/postgres"]), None);
        assert_eq!(find(&["--", "surely-no-preset"]), None);
        assert_eq!(find(&["--root", "x", "--", "postgres"]), None);
        assert_eq!(find(&[]), None);
        let path = folder().join("postgres.toml");
        assert!(find(&["--", path.to_str().unwrap()]).is_some());
    }

    #[test]
    fn what_the_user_gives_goes_before_what_the_preset_says() {
        let own = preset().apply(&given(&["--", "p", "word"]), Path::new("/programs")).unwrap();
        assert_eq!((own.user.as_deref(), own.huge_2m), (Some("someone"), Some(4)));
        assert_eq!(own.program[3..], ["p", "word"]);
        let words = ["-u", "me", "--huge-2m", "0", "-e", "A=y", "--", "p"];
        let mine = preset().apply(&given(&words), Path::new("/programs")).unwrap();
        assert_eq!((mine.user.as_deref(), mine.huge_2m), (Some("me"), Some(0)));
        assert_eq!(mine.environment, ["A=x", "A=y"]);
    }

    #[test]
    fn a_step_that_fails_is_named_and_the_last() {
        let output = Command::new("sh").args(["-c", &preset().script(), "p", "word"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text,
            "== it's first\nfigure: a row | speed | 5\np word\n== second\nThe step \"second\" failed with status 1.\n"
        );
    }

    #[test]
    fn a_misspelt_word_is_an_error() {
        assert!(toml::from_str::<Preset>(&TEXT.replace("huge-2m", "huge_2m")).is_err());
    }
}
