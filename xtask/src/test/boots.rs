//! The table of guests that the tests boot.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use roundtable::initramfs::Initramfs;
use roundtable::machine::{Machine, pool_parameters};
use roundtable::run::Parts;
use roundtable::size::Size;

use super::Subject;
use super::machines::{OUTSIDER, outsider};
use super::programs::TestProgram;

/// One guest, and what it shall show.
pub struct Boot {
    /// Unique in the table; console logs are called by it.
    pub name: &'static str,
    pub cpus: u32,
    pub memory: Size,
    /// Memory nodes.
    pub nodes: u32,
    /// QEMU's machine type.
    pub machine: Option<&'static str>,
    /// Its firmware, by the name that QEMU knows.
    pub firmware: Option<&'static str>,
    /// Whether our kernel's clock counts instructions; Linux gets an ordinary one.
    pub icount: bool,
    /// Huge pages at boot, of 2 MiB and of 1 GiB.
    pub pools: (u64, u64),
    /// Whether it has a network card, and the host a server for it.
    pub network: bool,
    /// Whether it has a folder of the host, and the host does in it what it asks for.
    pub volume: bool,
    /// Further kernel parameters.
    pub parameters: &'static [&'static str],
    /// Seconds for each test program, or for the whole conversation.
    pub limit: u32,
    pub kernels: Kernels,
    /// Which of our kernels; by the kind of work when absent.
    pub own: Option<Subject>,
    /// Programs of ours that the test programs start.
    pub helpers: &'static [&'static str],
    pub work: Work,
}

/// Where a boot's tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// On ours and on Debian's.
    Both,
    /// On ours only: what is tested is our own.
    Ours,
    /// On Debian's only: what is tested is a tool for Linux hosts.
    Linux,
}

/// What a guest does.
pub enum Work {
    /// Runs test programs under our init.
    Programs(Selection),
    /// Boots somebody's archive and is talked to.
    Console(Script),
}

/// Which test programs a boot runs.
pub enum Selection {
    /// These.
    Only(&'static [&'static str]),
    /// These once more, after the boot that they belong to.
    Also(&'static [&'static str]),
    /// All that no other boot has for itself.
    Rest,
}

impl Selection {
    /// The programs that are named, for this boot alone or not.
    pub fn names(&self) -> &'static [&'static str] {
        match self {
            Selection::Only(names) | Selection::Also(names) => names,
            Selection::Rest => &[],
        }
    }
}

/// A conversation with a console.
pub struct Script {
    pub archive: fn(&Parts) -> Result<Initramfs>,
    pub gzip: bool,
    pub talk: &'static [Talk],
    pub end: End,
}

/// One turn of a conversation.
#[derive(Clone, Copy, Debug)]
pub enum Talk {
    /// Wait until this is printed, behind what was waited for before.
    Expect(&'static str),
    /// The same for the first of several; there is at least one.
    ExpectOneOf(&'static [&'static str]),
    /// Type this.
    Send(&'static str),
}

/// How a conversation's machine has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself; QEMU ends with status 0.
    PowerOff,
}

/// What most boots are.
pub const BOOT: Boot = Boot {
    name: "",
    cpus: 2,
    memory: Size::gibibytes(2),
    nodes: 1,
    machine: None,
    firmware: None,
    icount: false,
    pools: (0, 0),
    network: false,
    volume: false,
    parameters: &[],
    limit: 120,
    kernels: Kernels::Both,
    own: None,
    helpers: &[],
    work: Work::Programs(Selection::Rest),
};

/// All guests, in the order in which they are booted.
pub fn all() -> Vec<Boot> {
    let mut boots = vec![
        // Without it nothing else can work, so it comes first.
        Boot { name: "outsider", work: outsider(false, OUTSIDER), limit: 120, ..BOOT },
        Boot { name: "programs", memory: Size::gibibytes(3), ..BOOT },
        // Once more where one CPU overtakes another at every point at which it can.
        Boot {
            name: "perturbed",
            kernels: Kernels::Ours,
            parameters: &["perturb=20"],
            work: Work::Programs(Selection::Also(&["test_wakeups", "test_futex"])),
            ..BOOT
        },
        Boot {
            name: "network",
            network: true,
            work: Work::Programs(Selection::Only(&["test_network", "test_network_many"])),
            ..BOOT
        },
        // Its interrupts come another way there.
        Boot {
            name: "network-q35",
            network: true,
            machine: Some("q35"),
            kernels: Kernels::Ours,
            work: Work::Programs(Selection::Also(&["test_network"])),
            ..BOOT
        },
        // Debian's cloud kernel has no 9p.
        Boot {
            name: "volume",
            volume: true,
            kernels: Kernels::Ours,
            work: Work::Programs(Selection::Only(&["test_volume"])),
            ..BOOT
        },
        // Memory of files in base pages without tables of the files.
        Boot {
            name: "file-tables-huge",
            memory: Size::gibibytes(3),
            parameters: &["file_tables=huge"],
            kernels: Kernels::Ours,
            work: Work::Programs(Selection::Also(&[
                "test_ordinary",
                "test_private_windows",
                "test_mm_files",
            ])),
            ..BOOT
        },
        // Private memory without tables that are shared over fork.
        Boot {
            name: "fork-tables-off",
            memory: Size::gibibytes(3),
            parameters: &["fork_tables=off"],
            kernels: Kernels::Ours,
            work: Work::Programs(Selection::Also(&[
                "test_fork_files",
                "test_fork_tables",
                "test_mm",
                "test_thread",
                "test_process",
            ])),
            ..BOOT
        },
        // Programs, mappings and stacks as far from each other as on Linux.
        Boot {
            name: "layout-far",
            parameters: &["layout=far"],
            kernels: Kernels::Ours,
            work: Work::Programs(Selection::Also(&[
                "test_layout",
                "test_loading",
                "test_exec",
                "test_placement",
                "test_slots",
            ])),
            ..BOOT
        },
        Boot {
            name: "many-sharers",
            memory: Size::gibibytes(4),
            limit: 600,
            // Debian's kernel needs more than these 4 GiB for the same processes: that is the point of ours.
            kernels: Kernels::Ours,
            helpers: &["sharers"],
            work: Work::Programs(Selection::Only(&["test_ten_thousand"])),
            ..BOOT
        },
        Boot {
            name: "terabyte",
            // With 8 GiB it has its ten thousand processes, too.
            memory: Size::gibibytes(4),
            limit: 300,
            kernels: Kernels::Ours,
            helpers: &["roundtable"],
            work: Work::Programs(Selection::Only(&["test_terabyte", "test_audit_own"])),
            ..BOOT
        },
        Boot {
            name: "gigantic",
            memory: Size::gibibytes(4),
            pools: (0, 2),
            work: Work::Programs(Selection::Only(&["test_gigantic", "test_cgroup_hugetlb"])),
            ..BOOT
        },
        Boot {
            // Its pages are lost for the machine.
            name: "broken-memory",
            memory: Size::gibibytes(3),
            parameters: &["hugetlb_check=1"],
            work: Work::Programs(Selection::Only(&["test_hwpoison"])),
            ..BOOT
        },
        Boot {
            name: "nodes",
            memory: Size::gibibytes(1),
            nodes: 2,
            limit: 240,
            work: Work::Programs(Selection::Only(&["test_nodes"])),
            ..BOOT
        },
        Boot {
            name: "audit",
            memory: Size::gibibytes(4),
            pools: (0, 1),
            limit: 300,
            kernels: Kernels::Linux,
            helpers: &["roundtable", "map_file"],
            work: Work::Programs(Selection::Only(&["test_audit"])),
            ..BOOT
        },
        Boot {
            name: "small-memory",
            memory: Size::mebibytes(512),
            work: Work::Programs(Selection::Only(&["test_oom", "test_fork_bomb"])),
            ..BOOT
        },
        Boot {
            name: "fuzz",
            memory: Size::gibibytes(1),
            parameters: &["hugetlb_check=1"],
            helpers: &["fuzz"],
            work: Work::Programs(Selection::Only(&["test_fuzz"])),
            ..BOOT
        },
        Boot {
            name: "exhaustion",
            memory: Size::mebibytes(256),
            // Linux keeps its own books of what kernel memory a process may take, and none of most things.
            kernels: Kernels::Ours,
            work: Work::Programs(Selection::Only(&["test_exhaustion", "test_exhaustion_processes"])),
            limit: 600,
            ..BOOT
        },
        // A clock that counts instructions: what one of many costs is exact.
        Boot {
            name: "many",
            cpus: 1,
            icount: true,
            parameters: &["counting_clock=1"],
            limit: 600,
            own: Some(Subject::Shipped),
            work: Work::Programs(Selection::Only(&["test_many"])),
            ..BOOT
        },
        // The kernel's own counts of how long it keeps others waiting.
        Boot {
            name: "stalls",
            cpus: 1,
            icount: true,
            kernels: Kernels::Ours,
            limit: 600,
            work: Work::Programs(Selection::Only(&[
                "test_stalls",
                "test_stalls_files",
                "test_stalls_mounts",
                "test_stalls_net",
                "test_stalls_processes",
                "test_stalls_threads",
            ])),
            ..BOOT
        },
    ];
    boots.extend(protocols());
    boots.extend(super::machines::boots());
    boots.extend(super::race::boots());
    boots.extend(super::conversations::boots());
    boots
}

/// Sharing under the protocols that are not the default.
fn protocols() -> [Boot; 4] {
    let sharing = |name, parameters| Boot {
        name,
        parameters,
        kernels: Kernels::Ours,
        work: Work::Programs(Selection::Also(&["test_sharing", "test_hugetlb_random", "test_hwpoison"])),
        ..BOOT
    };
    // A clock that counts instructions: figures are exact, and those of the kernel as it is shipped.
    let costs = |name, parameters, programs| Boot {
        name,
        cpus: 1,
        memory: Size::gibibytes(3),
        icount: true,
        parameters,
        kernels: Kernels::Ours,
        own: Some(Subject::Shipped),
        helpers: &["latency"],
        work: Work::Programs(programs),
        ..BOOT
    };
    [
        costs("costs", &[], Selection::Only(&["test_costs"])),
        costs("costs-vma-lock", &["hugetlb_sharing=vma-lock"], Selection::Also(&["test_costs"])),
        sharing("sharing-vma-lock", &["hugetlb_sharing=vma-lock"]),
        sharing("sharing-file-lock", &["hugetlb_sharing=file-lock"]),
    ]
}

/// Refuses a table that names a program which was not built: its tests would silently not run.
pub fn check_names(boots: &[Boot], built: &BTreeSet<String>) -> Result<()> {
    for boot in boots {
        let tests = match &boot.work {
            Work::Programs(selection) => selection.names(),
            Work::Console(_) => &[],
        };
        for name in tests.iter().chain(boot.helpers) {
            ensure!(built.contains(*name), "boot {} wants {name}, and there is no such program", boot.name);
        }
    }
    Ok(())
}

impl Selection {
    /// The programs among `tests` that are meant.
    pub fn of<'a>(&self, tests: &'a [TestProgram]) -> Vec<&'a TestProgram> {
        let claimed: Vec<&str> = all()
            .iter()
            .filter_map(|boot| match &boot.work {
                Work::Programs(Selection::Only(names)) => Some(*names),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        tests
            .iter()
            .filter(|test| match self {
                Selection::Only(names) | Selection::Also(names) => names.contains(&test.name.as_str()),
                Selection::Rest => !claimed.contains(&test.name.as_str()),
            })
            .collect()
    }
}

impl Boot {
    /// What its tests are told apart by: the kernel, and the boot itself where the same ones run in several.
    pub fn label(&self, subject: Subject) -> String {
        match &self.work {
            Work::Programs(Selection::Also(_)) => format!("{} {}", subject.name(), self.name),
            _ => subject.name().to_string(),
        }
    }

    /// The machine for it.
    pub fn machine(&self, kernel: PathBuf, initrd: PathBuf, subject: Subject) -> Machine {
        let mut parameters = pool_parameters(self.pools.0, self.pools.1);
        parameters.extend(self.parameters.iter().map(|parameter| parameter.to_string()));
        if subject == Subject::Linux {
            // Its remarks on crashing programs would fall into the lines of the results.
            parameters.push("loglevel=1".to_string());
        }
        Machine {
            kernel,
            initrd,
            cpus: self.cpus,
            memory: self.memory,
            nodes: self.nodes,
            machine: self.machine.map(str::to_string),
            firmware: self.firmware.map(str::to_string),
            icount: self.icount && subject != Subject::Linux,
            network: None,
            volumes: Vec::new(),
            parameters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> TestProgram {
        TestProgram { name: name.into(), subtests: BTreeSet::from(["a".to_string()]), whole: true }
    }

    #[test]
    fn names_are_unique_and_only_one_boot_takes_the_rest() {
        let boots = all();
        let names: BTreeSet<_> = boots.iter().map(|boot| boot.name).collect();
        assert_eq!(names.len(), boots.len());
        assert!(!names.contains(""));
        let rest = boots.iter().filter(|boot| matches!(boot.work, Work::Programs(Selection::Rest)));
        assert_eq!(rest.count(), 1);
    }

    fn takers(test: &TestProgram, tests: &[TestProgram]) -> Vec<&'static str> {
        let boots = all();
        let takers = boots.iter().filter(|boot| match &boot.work {
            Work::Programs(selection) => selection.of(tests).contains(&test),
            Work::Console(_) => false,
        });
        takers.map(|boot| boot.name).collect()
    }

    #[test]
    fn every_program_has_exactly_one_boot_of_its_own() {
        let tests = [program("test_mmap"), program("test_ten_thousand"), program("test_oom")];
        for test in &tests {
            assert_eq!(takers(test, &tests).len(), 1, "{}", test.name);
        }
    }

    #[test]
    fn a_program_that_also_runs_elsewhere_is_not_taken_from_the_rest() {
        let tests = [program("test_sharing")];
        assert_eq!(takers(&tests[0], &tests), ["programs", "sharing-vma-lock", "sharing-file-lock"]);
    }

    #[test]
    fn names_of_programs_that_do_not_exist_are_refused() {
        let boots = [Boot {
            name: "a",
            helpers: &["helper"],
            work: Work::Programs(Selection::Also(&["test_a"])),
            ..BOOT
        }];
        let built = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        assert!(check_names(&boots, &built(&["helper", "test_a"])).is_ok());
        for names in [&["helper"], &["test_a"]] {
            let error = check_names(&boots, &built(names)).unwrap_err().to_string();
            assert!(error.starts_with("boot a wants "), "{error}");
        }
    }
}
