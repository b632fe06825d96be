//! The host command: runs programs on the Roundtable kernel, and audits Linux hosts.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use roundtable::audit::record::{self, RecordOptions};
use roundtable::audit::{self, AuditOptions};
use roundtable::options::RunOptions;
use roundtable::plan::{self, PlanOptions};
use roundtable::run::{MACHINE_FAILED, Parts, run};
use roundtable::watch::{self, WatchOptions};

/// Runs programs on the Roundtable kernel; on a Linux host tells who shares page tables, who could, and what
/// it saves.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a Linux program, or the demonstration, on the kernel in QEMU
    Run {
        /// The folder that `cargo xtask build` left the kernel and the programs in
        #[arg(long, value_name = "FOLDER", default_value = "target/roundtable", env = "ROUNDTABLE_PARTS")]
        parts: PathBuf,
        #[command(flatten)]
        run: Box<RunOptions>,
    },
    /// Tell who shares page tables of huge pages on this Linux host, who does not and why, and what it costs
    Audit(AuditOptions),
    /// Show the audit as a live screen: page tables, pools, faults
    Watch(WatchOptions),
    /// Copy what an audit reads into a folder, without names of files and processes, to look at it elsewhere
    Record(RecordOptions),
    /// Count the page tables that a machine will need which does not exist yet
    Plan(PlanOptions),
}

fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            // Without a terminal or a reader there is nobody to tell.
            let _ = writeln!(io::stderr(), "roundtable: {error:#}");
            ExitCode::from(MACHINE_FAILED as u8)
        }
    }
}

fn execute(cli: Cli) -> Result<i32> {
    match cli.command {
        Command::Run { parts, run: options } => run(&options, &Parts::in_folder(&parts)),
        Command::Audit(options) => audit::run(&options),
        Command::Record(options) => record::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Watch(options) => watch::run(&options),
    }
}
