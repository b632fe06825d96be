//! A folder of the host that a guest under test has, and somebody on the host who works in it.
//!
//! The guest puts a shell script into `.host/NAME.ask`, and finds what it printed and its status in `.host/NAME.done`: what the guest wrote is
//! looked at on the host, and what the host changes in the guest, whenever a test wants. Beside the folder lies a secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use guest_link::job;
use roundtable::volume::Volume;
use tempfile::TempDir;

/// How often it is looked whether something is asked.
const PAUSE: Duration = Duration::from_millis(5);

/// The folder; it goes with the value.
pub struct HostFolder {
    volumes: Vec<Volume>,
    over: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl HostFolder {
    /// Makes it, and begins to work in it.
    pub fn start() -> Result<HostFolder> {
        let folder = tempfile::tempdir()?;
        let shared = folder.path().join("shared");
        fs::create_dir_all(shared.join(".host"))?;
        fs::write(folder.path().join("secret"), "the host's own\n")?;
        let volume = |guest: &str, read_only| Volume { host: shared.clone(), guest: guest.into(), read_only };
        let volumes = vec![volume("/volume", false), volume("/volume-ro", true)];
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let worker = thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                // What goes wrong here is an answer that does not come, which the test tells of.
                let _ = answer_all(&shared);
                thread::sleep(PAUSE);
            }
        });
        Ok(HostFolder { volumes, over, worker: Some(worker), _folder: folder })
    }

    /// The folder as the machine has it: to write, and to read only.
    pub fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    /// As init mounts it.
    pub fn for_job(&self) -> Vec<job::Volume> {
        self.volumes.iter().enumerate().map(|(index, volume)| volume.for_job(index)).collect()
    }
}

impl Drop for HostFolder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn answer_all(shared: &Path) -> Result<()> {
    for entry in fs::read_dir(shared.join(".host"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "ask") {
            answer(shared, path)?;
        }
    }
    Ok(())
}

fn answer(shared: &Path, ask: PathBuf) -> Result<()> {
    let script = fs::read_to_string(&ask)?;
    fs::remove_file(&ask)?;
    let output = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(shared)
        .stdin(Stdio::null())
        .output()
        .context("sh")?;
    let mut text = format!("{}\n", output.status.code().unwrap_or(-1)).into_bytes();
    text.extend(output.stdout);
    text.extend(output.stderr);
    let begun = ask.with_extension("begun");
    fs::write(&begun, text)?;
    fs::rename(&begun, ask.with_extension("done"))?;
    Ok(())
}
