//! Where what is advised is documented.

/// The kernel's pages on pools of huge pages.
pub const POOLS: &str = "https://docs.kernel.org/admin-guide/mm/hugetlbpage.html";
/// The kernel's pages on transparent huge pages, of shared memory too.
pub const TRANSPARENT: &str = "https://docs.kernel.org/admin-guide/mm/transhuge.html";
/// The manual page of mmap.
pub const MMAP: &str = "https://man7.org/linux/man-pages/man2/mmap.2.html";
/// The manual page of /proc/PID/smaps.
pub const SMAPS: &str = "https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html";
/// The manual page of userfaultfd.
pub const USERFAULTFD: &str = "https://man7.org/linux/man-pages/man2/userfaultfd.2.html";
/// PostgreSQL's pages on Linux' huge pages.
pub const POSTGRESQL: &str = "https://www.postgresql.org/docs/current/kernel-resources.html#LINUX-HUGE-PAGES";
/// Oracle's pages on huge pages.
pub const ORACLE: &str = "https://docs.oracle.com/en/database/oracle/oracle-database/19/unxar/administering-oracle-database-on-linux.html";
/// MySQL's pages on large pages.
pub const MYSQL: &str = "https://dev.mysql.com/doc/refman/8.4/en/large-page-support.html";
/// MariaDB's pages on large pages.
pub const MARIADB: &str = "https://mariadb.com/kb/en/memory-allocation-limitation/";
/// The manual page of java.
pub const JAVA: &str = "https://docs.oracle.com/en/java/javase/21/docs/specs/man/java.html#large-pages";
/// QEMU's manual: memory back ends.
pub const QEMU: &str = "https://www.qemu.org/docs/master/system/qemu-manpage.html";
/// libvirt's pages on a machine's memory.
pub const LIBVIRT: &str = "https://libvirt.org/formatdomain.html#memory-backing";
/// DPDK's pages on huge pages.
pub const DPDK: &str = "https://doc.dpdk.org/guides/linux_gsg/linux_eal_parameters.html";
/// The manual page of SysV shared memory.
pub const SYSVIPC: &str = "https://man7.org/linux/man-pages/man2/shmctl.2.html";
