//! The host command: runs programs on the Roundtable kernel, and audits Linux hosts.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use roundtable::audit::explain::{self, ExplainOptions};
use roundtable::audit::record::{self, RecordOptions};
use roundtable::audit::thresholds::UNKNOWN;
use roundtable::audit::{self, AuditOptions};
use roundtable::options::RunOptions;
use roundtable::output::file;
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
    /// Explain one process: its page tables, what it shares with whom, its huge pages, its limits, and what to do
    Explain(ExplainOptions),
    /// Print completions for a shell
    #[command(after_help = "Examples:\n  roundtable completions bash > /etc/bash_completion.d/roundtable")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, of this command or of one of its own
    #[command(
        after_help = "Examples:\n  roundtable manual | man -l -\n  roundtable manual audit > roundtable-audit.1"
    )]
    Manual {
        /// The command, such as audit
        command: Option<String>,
    },
}

fn main() -> ExitCode {
    roundtable::abort_on_panic();
    // A run's status is the job's, so its errors have one that few programs use; all other commands tell by
    // theirs as checks do.
    let runs = std::env::args_os().nth(1).is_some_and(|command| command == "run");
    let failed = if runs { MACHINE_FAILED } else { UNKNOWN };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return ExitCode::from(failed as u8);
        }
        Err(error) => error.exit(),
    };
    match execute(cli) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            // Without a terminal or a reader there is nobody to tell.
            let _ = writeln!(io::stderr(), "roundtable: {error:#}");
            ExitCode::from(failed as u8)
        }
    }
}

fn execute(cli: Cli) -> Result<i32> {
    match cli.command {
        Command::Run { parts, run: options } => {
            if !parts.is_dir() {
                bail!(
                    "{}: there is no such folder. `cargo xtask build` makes target/roundtable in a clone of Roundtable; \
                     --parts FOLDER or ROUNDTABLE_PARTS says where it is",
                    parts.display()
                );
            }
            run(&options, &Parts::in_folder(&parts))
        }
        Command::Audit(options) => audit::run(&options),
        Command::Record(options) => record::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Watch(options) => watch::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "roundtable", &mut out);
            print(&out)
        }
        Command::Manual { command } => manual(command.as_deref()),
    }
}

fn manual(name: Option<&str>) -> Result<i32> {
    let mut all = Cli::command();
    all.build();
    let command = match name {
        None => all,
        Some(name) => match all.find_subcommand(name) {
            Some(command) => command.clone(),
            None => bail!("there is no command '{name}'"),
        },
    };
    let mut out = Vec::new();
    clap_mangen::Man::new(command).render(&mut out)?;
    print(&out)
}

fn print(bytes: &[u8]) -> Result<i32> {
    file::write(&String::from_utf8_lossy(bytes), None)?;
    Ok(0)
}
