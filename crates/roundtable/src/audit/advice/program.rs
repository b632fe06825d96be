//! Which programs are known, and what each can be told about huge pages.

use super::{Step, sources};
use crate::output::human;

/// A program that the advice knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// PostgreSQL and what is made from it.
    PostgreSql,
    /// Oracle Database.
    Oracle,
    /// MySQL, Percona Server.
    MySql,
    /// MariaDB.
    MariaDb,
    /// A Java virtual machine.
    Java,
    /// QEMU, with or without libvirt.
    Qemu,
    /// Redis, Valkey.
    Redis,
    /// memcached.
    Memcached,
    /// Anything that is linked with DPDK's memory, SPDK too.
    Dpdk,
    /// Any other: it may be the operator's own.
    Other,
}

/// The start of a file's name that DPDK gives to its memory, unless told otherwise.
const DPDK_FILES: &str = "rtemap_";

/// Knows a program by its name, as the kernel has it, and a file of huge pages that it maps.
pub fn of(name: &str, file: &str) -> Program {
    let base = file.rsplit('/').next().unwrap_or_default();
    // DPDK's files are called PREFIXmap_NUMBER, and its prefix is `rte` unless chosen.
    let numbered = base.rsplit_once("map_").is_some_and(|(_, number)| number.parse::<u32>().is_ok());
    match name {
        "postgres" | "postmaster" | "edb-postgres" => Program::PostgreSql,
        "mysqld" | "mysqld-debug" => Program::MySql,
        "mariadbd" => Program::MariaDb,
        "java" => Program::Java,
        "kvm" => Program::Qemu,
        "redis-server" | "valkey-server" => Program::Redis,
        "memcached" => Program::Memcached,
        "oracle" => Program::Oracle,
        _ if name.starts_with("qemu-") => Program::Qemu,
        _ if name.starts_with("ora_") || name.starts_with("oracle_") || file.starts_with("/dev/shm/ora_") => {
            Program::Oracle
        }
        _ if base.starts_with(DPDK_FILES) || numbered || name.starts_with("reactor_") => Program::Dpdk,
        _ => Program::Other,
    }
}

/// What a memory is to the program that has it on base pages.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// Its file, in an operator's words.
    pub file: &'a str,
    /// Its bytes.
    pub size: u64,
    /// Bytes of the huge pages to put it on.
    pub page_size: u64,
    /// Whether the host's programs get that size when they name none.
    pub is_default: bool,
}

impl Program {
    /// How the program is told to put this memory on huge pages, and where that is documented; `None` where
    /// it cannot be told.
    pub fn put_on_huge_pages(self, memory: Memory) -> Option<(Vec<Step>, &'static str)> {
        let page = human::bytes(memory.page_size).replace(' ', "").replace("iB", "");
        let restart =
            |unit: &str| Step::by_hand(format!("Start {unit} again; memory changes its pages only then."));
        let posix = memory.file.starts_with("/dev/shm/");
        Some(match self {
            // Its own module knows more.
            Program::PostgreSql => return None,
            Program::Oracle if posix => (
                vec![
                    Step::by_hand(
                        "Leave Automatic Memory Management, which keeps the SGA in /dev/shm, where huge \
                         pages of hugetlbfs cannot be: reset MEMORY_TARGET and MEMORY_MAX_TARGET in the \
                         spfile, set SGA_TARGET and PGA_AGGREGATE_TARGET in their place.",
                    ),
                    Step::by_hand(
                        "Set USE_LARGE_PAGES=ONLY in the spfile: with it the instance starts with huge \
                         pages or not at all; with TRUE it takes what there is and the rest on base pages.",
                    ),
                    Step::by_hand(
                        "Give the oracle user a memlock limit above the SGA's size (/etc/security/limits.d, \
                         or LimitMEMLOCK= of the unit).",
                    ),
                    restart("the instance"),
                ],
                sources::ORACLE,
            ),
            Program::Oracle => (
                vec![
                    Step::by_hand(
                        "Set USE_LARGE_PAGES=ONLY in the spfile: with it the instance starts with huge \
                         pages or not at all; with TRUE it takes what there is and the rest on base pages.",
                    ),
                    Step::by_hand(
                        "Give the oracle user a memlock limit above the SGA's size (/etc/security/limits.d, \
                         or LimitMEMLOCK= of the unit).",
                    ),
                    restart("the instance"),
                ],
                sources::ORACLE,
            ),
            Program::MySql => (
                vec![
                    Step::by_hand(
                        "Let its user have SysV segments of huge pages: set vm.hugetlb_shm_group to the \
                         number of its group, and LimitMEMLOCK=infinity for its unit.",
                    ),
                    Step::by_hand(
                        "Put large_pages=ON under [mysqld] in my.cnf. Where the pool is too short it warns \
                         in its log and takes base pages.",
                    ),
                    restart("the server"),
                ],
                sources::MYSQL,
            ),
            Program::MariaDb => (
                vec![
                    Step::by_hand(
                        "Put large_pages=ON under [mariadbd] in my.cnf, and LimitMEMLOCK=infinity for its \
                         unit. Where the pool is too short it takes base pages, and need not say so.",
                    ),
                    restart("the server"),
                ],
                sources::MARIADB,
            ),
            Program::Java => (
                vec![
                    Step::by_hand(
                        "Give java -XX:+UseLargePages (hugetlbfs), with -Xms equal to -Xmx so that all of \
                         the heap is there from the start. Where the pool is too short it warns and takes \
                         base pages. -XX:+UseTransparentHugePages needs no pool, but saves page tables of \
                         heaps in shared memory only (ZGC, with shmem_enabled=advise).",
                    ),
                    restart("the program"),
                ],
                sources::JAVA,
            ),
            Program::Qemu => (
                vec![
                    Step::by_hand(format!(
                        "With libvirt put <memoryBacking><hugepages><page size='{}' \
                         unit='KiB'/></hugepages></memoryBacking> into the domain (virsh edit). With QEMU \
                         alone give -object \
                         memory-backend-memfd,id=ram,size=SIZE,hugetlb=on,hugetlbsize={page},share=on,prealloc=on \
                         -machine memory-backend=ram. It ends with an error where the pool is too short.",
                        memory.page_size >> 10
                    )),
                    Step::by_hand(
                        "Shut the guest down and start it again; a reboot from inside keeps the memory.",
                    ),
                ],
                if memory.file.contains("libvirt") { sources::LIBVIRT } else { sources::QEMU },
            ),
            // Neither can take pages of a pool. memcached's -L asks for transparent ones, and each of those
            // in private memory keeps a page table in reserve: no table is saved.
            Program::Redis | Program::Memcached => return None,
            Program::Dpdk | Program::Other => {
                let size = if memory.is_default {
                    String::new()
                } else {
                    format!(" and the size's own flag (MAP_HUGE_{page}B)")
                };
                let tell = if memory.file.starts_with("SysV") {
                    format!(
                        "shmget with SHM_HUGETLB{size}; its user needs CAP_IPC_LOCK or the group of \
                         vm.hugetlb_shm_group"
                    )
                } else if memory.file.starts_with("memfd") {
                    format!("memfd_create with MFD_HUGETLB{size}")
                } else if memory.file.starts_with('/') {
                    "a file on a hugetlbfs (mount -t hugetlbfs none /mnt/huge) in the place of this one"
                        .to_string()
                } else {
                    format!("mmap with MAP_HUGETLB{size}")
                };
                (
                    vec![
                        Step::by_hand(format!(
                            "Let the program ask for huge pages: {tell}. A program that cannot be changed \
                             and takes SysV segments can be started by hugectl --shm (libhugetlbfs)."
                        )),
                        restart("it"),
                    ],
                    sources::POOLS,
                )
            }
        })
    }

    /// How the program is told to use pages of 1 GiB where it has smaller huge ones.
    pub fn use_gigantic_pages(self) -> Option<(&'static str, &'static str)> {
        match self {
            Program::PostgreSql => Some((
                "Set huge_page_size='1GB' in postgresql.conf (PostgreSQL 14 and later).",
                sources::POSTGRESQL,
            )),
            Program::Qemu => Some((
                "With libvirt set <page size='1048576' unit='KiB'/> in <hugepages>; with QEMU alone hugetlbsize=1G.",
                sources::QEMU,
            )),
            Program::Java => Some(("Give java -XX:LargePageSizeInBytes=1g.", sources::JAVA)),
            Program::Dpdk => Some((
                "Mount a hugetlbfs with pagesize=1G and give its folder with --huge-dir.",
                sources::DPDK,
            )),
            Program::MySql | Program::MariaDb => {
                Some(("Boot with default_hugepagesz=1G: it takes the default size.", sources::MYSQL))
            }
            Program::Other => Some(("Let the program add MAP_HUGE_1GB to its flags.", sources::MMAP)),
            Program::Oracle | Program::Redis | Program::Memcached => None,
        }
    }

    /// Whether it is told the size of its pages; the others take the host's default (`default_hugepagesz=`).
    pub fn names_its_size(self) -> bool {
        matches!(self, Program::Qemu | Program::Dpdk | Program::Other)
    }

    /// Whether its operator can choose where it maps its memory, and how large it is to the byte.
    pub fn chooses_addresses(self) -> bool {
        self == Program::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_name_and_file() {
        for (name, file, program) in [
            ("postgres", "anonymous memory", Program::PostgreSql),
            ("qemu-system-x86", "/dev/hugepages/libvirt/qemu/1-a/ram", Program::Qemu),
            ("ora_pmon_X", "SysV segment 5", Program::Oracle),
            ("tnslsnr", "/dev/shm/ora_X_1", Program::Oracle),
            ("testpmd", "/dev/hugepages/rtemap_0", Program::Dpdk),
            ("vhost", "/dev/hugepages/spdk_pid93map_12", Program::Dpdk),
            ("roadmap", "/dev/hugepages/roadmap_x", Program::Other),
        ] {
            assert_eq!(of(name, file), program, "{name} {file}");
        }
    }

    #[test]
    fn what_needs_shared_memory_is_not_told_to_a_file() {
        let memory = |file| Memory { file, size: 1 << 30, page_size: 2 << 20, is_default: true };
        let text = |program: Program, file| format!("{:?}", program.put_on_huge_pages(memory(file)));
        assert!(text(Program::Oracle, "/dev/shm/ora_X_1").contains("MEMORY_TARGET"));
        assert!(!text(Program::Oracle, "SysV segment 1").contains("MEMORY_TARGET"));
        assert!(text(Program::Qemu, "memfd ram").contains("hugetlbsize=2M"));
        assert!(text(Program::Other, "SysV segment 1").contains("SHM_HUGETLB"));
        assert_eq!(text(Program::Redis, "anonymous memory"), "None");
    }
}
