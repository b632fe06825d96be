//! What the versions of kernels, mainline and vendors', tell.

use super::*;

fn status(release: &str, id: &str) -> Status {
    let kernel = describe(release, "", None, "x86_64", None, 4096);
    kernel.findings.iter().find(|finding| finding.id == id).unwrap().status
}

#[test]
fn each_protocol_has_its_time() {
    let protocol = |release| describe(release, "", None, "x86_64", None, 4096).protocol;
    assert_eq!(protocol("2.6.18"), Protocol::None);
    assert_eq!(protocol("4.19.0-6"), Protocol::Unfenced);
    assert_eq!(protocol("5.6.19"), Protocol::Unfenced);
    assert_eq!(protocol("5.7.0"), Protocol::FileLock);
    assert_eq!(protocol("6.0.12"), Protocol::FileLock);
    assert_eq!(protocol("6.1.0"), Protocol::VmaLock);
    assert_eq!(protocol("7.2.0-rc1"), Protocol::VmaLock);
}

#[test]
fn stable_branches_are_told_apart() {
    for (release, expected) in [
        ("6.12.34", Status::Present),
        ("6.12.35", Status::Fixed),
        ("6.6.94", Status::Present),
        ("6.6.95", Status::Fixed),
        ("6.14.9", Status::Present),
        ("6.16.0", Status::Fixed),
        ("5.4.200", Status::Present),
    ] {
        assert_eq!(status(release, "CVE-2025-38085"), expected, "{release}");
    }
}

#[test]
fn the_slow_fix_comes_with_the_fix_and_goes_later() {
    for (release, expected) in [
        ("6.12.34", Status::NotAffected),
        ("6.12.35", Status::Present),
        ("6.12.74", Status::Fixed),
        ("6.15.3", Status::NotAffected),
        ("6.17.2", Status::Present),
        ("6.18.12", Status::Present),
        ("6.18.13", Status::Fixed),
        ("6.18.44", Status::Fixed),
        ("6.19.2", Status::Unknown),
        ("7.0.1", Status::Fixed),
    ] {
        assert_eq!(status(release, "slow-unshare"), expected, "{release}");
    }
    assert_eq!(status("6.12.8", "CVE-2026-23100"), Status::NotAffected);
    assert_eq!(status("6.12.40", "CVE-2026-23100"), Status::Present);
    assert_eq!(status("6.18.8", "CVE-2026-23100"), Status::Fixed);
}

/// A kernel as a vendor ships it: release, what is said in /proc/version behind the compiler, Ubuntu's signature; what
/// is made of it: the version, whether the vendor's own fixes make it uncertain, the protocol, and whether it has
/// CVE-2025-38085 and its slow fix.
type Vendor = (&'static str, &'static str, Option<&'static str>, Version, bool, Protocol, Status, Status);

#[test]
fn vendors_kernels_tell_what_they_tell() {
    use Protocol::{FileLock, Unfenced, VmaLock};
    use Status::{Fixed, NotAffected, Present, Unknown};
    let table: &[Vendor] = &[
        // Debian 10, 11, 12, 13, and 12 with backports; a cloud image; one that hides its build.
        (
            "4.19.0-27-amd64",
            "#1 SMP Debian 4.19.316-1 (2024-06-25)",
            None,
            v(4, 19, 316),
            false,
            Unfenced,
            Present,
            NotAffected,
        ),
        (
            "5.10.0-35-amd64",
            "#1 SMP Debian 5.10.237-1 (2025-05-19)",
            None,
            v(5, 10, 237),
            false,
            FileLock,
            Present,
            NotAffected,
        ),
        (
            "5.10.0-36-amd64",
            "#1 SMP Debian 5.10.244-1 (2025-09-29)",
            None,
            v(5, 10, 244),
            false,
            FileLock,
            Fixed,
            Present,
        ),
        (
            "6.1.0-37-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)",
            None,
            v(6, 1, 140),
            false,
            VmaLock,
            Present,
            NotAffected,
        ),
        (
            "6.1.0-38-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1 (2025-08-02)",
            None,
            v(6, 1, 147),
            false,
            VmaLock,
            Fixed,
            Present,
        ),
        (
            "6.12.43+deb13-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)",
            None,
            v(6, 12, 43),
            false,
            VmaLock,
            Fixed,
            Present,
        ),
        (
            "6.12.30+bpo-cloud-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.12.30-1~bpo12+1 (2025-06-14)",
            None,
            v(6, 12, 30),
            false,
            VmaLock,
            Present,
            NotAffected,
        ),
        (
            "6.12.117+deb12-cloud-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1~deb12u1 (2026-10-01)",
            None,
            v(6, 12, 117),
            false,
            VmaLock,
            Fixed,
            Fixed,
        ),
        ("6.1.0-37-amd64", "", None, v(6, 1, 0), true, VmaLock, Unknown, Unknown),
        // Ubuntu 20.04, 22.04, 24.04, 25.04; a cloud's kernel that hides its signature.
        (
            "5.4.0-216-generic",
            "#236-Ubuntu SMP",
            Some("Ubuntu 5.4.0-216.236-generic 5.4.291"),
            v(5, 4, 291),
            true,
            Unfenced,
            Unknown,
            Unknown,
        ),
        (
            "5.15.0-91-generic",
            "#101-Ubuntu SMP",
            Some("Ubuntu 5.15.0-91.101-generic 5.15.131"),
            v(5, 15, 131),
            true,
            FileLock,
            Unknown,
            Unknown,
        ),
        (
            "6.8.0-52-generic",
            "#53-Ubuntu SMP PREEMPT_DYNAMIC",
            Some("Ubuntu 6.8.0-52.53-generic 6.8.12"),
            v(6, 8, 12),
            true,
            VmaLock,
            Unknown,
            Unknown,
        ),
        (
            "6.14.0-15-generic",
            "#15-Ubuntu SMP PREEMPT_DYNAMIC",
            Some("Ubuntu 6.14.0-15.15-generic 6.14.0"),
            v(6, 14, 0),
            true,
            VmaLock,
            Unknown,
            Unknown,
        ),
        (
            "6.17.0-5-generic",
            "#5-Ubuntu SMP PREEMPT_DYNAMIC",
            Some("Ubuntu 6.17.0-5.5-generic 6.17.0"),
            v(6, 17, 0),
            true,
            VmaLock,
            Fixed,
            Unknown,
        ),
        ("6.8.0-1021-aws", "#23-Ubuntu SMP", None, v(6, 8, 0), true, VmaLock, Unknown, Unknown),
        // Red Hat 7, 8, 9, 10; Rocky; Oracle's.
        (
            "3.10.0-1160.119.1.el7.x86_64",
            "#1 SMP Tue Jun 4 14:43:51 UTC 2024",
            None,
            v(3, 10, 0),
            true,
            Unfenced,
            Unknown,
            Unknown,
        ),
        (
            "4.18.0-553.el8_10.x86_64",
            "#1 SMP Fri May 10 15:19:13 EDT 2024",
            None,
            v(4, 18, 0),
            true,
            Unfenced,
            Unknown,
            Unknown,
        ),
        (
            "5.14.0-427.13.1.el9_4.x86_64",
            "#1 SMP PREEMPT_DYNAMIC Wed Apr 10 10:29:16 EDT 2024",
            None,
            v(5, 14, 0),
            true,
            FileLock,
            Unknown,
            Unknown,
        ),
        (
            "6.12.0-55.9.1.el10_0.x86_64",
            "#1 SMP PREEMPT_DYNAMIC",
            None,
            v(6, 12, 0),
            true,
            VmaLock,
            Unknown,
            Unknown,
        ),
        ("5.15.0-300.163.18.1.el9uek.x86_64", "#2 SMP", None, v(5, 15, 0), true, FileLock, Unknown, Unknown),
        // SUSE, openEuler, Alibaba, Proxmox.
        (
            "6.4.0-150600.23.42-default",
            "#1 SMP PREEMPT_DYNAMIC",
            None,
            v(6, 4, 0),
            true,
            VmaLock,
            Unknown,
            Unknown,
        ),
        (
            "5.10.0-136.12.0.86.oe2203sp1.x86_64",
            "#1 SMP",
            None,
            v(5, 10, 0),
            true,
            FileLock,
            Unknown,
            Unknown,
        ),
        ("5.10.134-16.3.al8.x86_64", "#1 SMP", None, v(5, 10, 134), true, FileLock, Unknown, Unknown),
        (
            "6.8.12-4-pve",
            "#1 SMP PREEMPT_DYNAMIC PMX 6.8.12-4 (2024-11-06T15:04Z)",
            None,
            v(6, 8, 12),
            true,
            VmaLock,
            Unknown,
            Unknown,
        ),
        // Those who follow the stable branches, and somebody's own.
        (
            "6.15.3-200.fc42.x86_64",
            "#1 SMP PREEMPT_DYNAMIC",
            None,
            v(6, 15, 3),
            false,
            VmaLock,
            Present,
            NotAffected,
        ),
        (
            "6.1.128-136.201.amzn2023.x86_64",
            "#1 SMP PREEMPT_DYNAMIC",
            None,
            v(6, 1, 128),
            false,
            VmaLock,
            Present,
            NotAffected,
        ),
        ("6.12.1-arch1-1", "#1 SMP PREEMPT_DYNAMIC", None, v(6, 12, 1), false, VmaLock, Present, NotAffected),
        (
            "5.15.167.4-microsoft-standard-WSL2",
            "#1 SMP",
            None,
            v(5, 15, 167),
            false,
            FileLock,
            Present,
            NotAffected,
        ),
        ("6.6.95-flatcar", "#1 SMP PREEMPT_DYNAMIC", None, v(6, 6, 95), false, VmaLock, Fixed, Present),
        ("6.18.44-fc-v657", "#1 SMP", None, v(6, 18, 44), false, VmaLock, Fixed, Fixed),
        ("6.0.0", "#1 SMP", None, v(6, 0, 0), false, FileLock, Present, NotAffected),
        ("6.16.0-rc7+", "#1 SMP", None, v(6, 16, 0), false, VmaLock, Fixed, Present),
    ];
    for (release, built, signature, version, vendor_fixes, protocol, bug, slow) in table {
        // Debian's compiler is named before the '#', on kernels that are not Debian's as well.
        let build =
            format!("Linux version {release} (a@b) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0) {built}");
        let kernel = describe(release, &build, *signature, "x86_64", None, 4096);
        assert_eq!(
            (kernel.version, kernel.vendor_fixes, kernel.protocol),
            (Some(*version), *vendor_fixes, *protocol),
            "{release}"
        );
        let status = |id| kernel.findings.iter().find(|finding| finding.id == id).unwrap().status;
        assert_eq!((status("CVE-2025-38085"), status("slow-unshare")), (*bug, *slow), "{release}");
        // Both came and went in the same releases.
        assert_eq!(status("CVE-2025-38084"), *bug, "{release}");
    }
}

#[test]
fn our_own_kernel_says_itself_what_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let sharing = folder.path().join("sys/kernel/mm/hugepages/sharing");
    std::fs::create_dir_all(&sharing).unwrap();
    let source = Source::recorded(folder.path());
    for (name, protocol) in [
        ("file-tables", Protocol::FileTables),
        ("vma-lock", Protocol::VmaLock),
        ("file-lock", Protocol::FileLock),
        ("none-of-these", Protocol::None),
    ] {
        std::fs::write(sharing.join("protocol"), format!("{name}\n")).unwrap();
        let kernel = running(&source);
        assert_eq!((kernel.protocol, kernel.shares), (protocol, protocol != Protocol::None));
        assert!(kernel.findings.is_empty(), "Linux's bugs are Linux's");
    }
}

#[test]
fn architecture_and_configuration_decide_whether_there_is_sharing() {
    let shares = |machine, config, page| describe("6.12.1", "", None, machine, config, page).shares;
    assert!(shares("x86_64", None, 4096) && shares("aarch64", None, 4096) && shares("riscv64", None, 4096));
    assert!(!shares("aarch64", None, 65536) && !shares("s390x", None, 4096));
    let on = "CONFIG_HUGETLB_PAGE=y\nCONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING=y\n";
    assert!(shares("x86_64", Some(on), 4096));
    assert!(shares("x86_64", Some("CONFIG_HUGETLB_PAGE=y\nCONFIG_ARCH_WANT_HUGE_PMD_SHARE=y\n"), 4096));
    assert!(!shares("x86_64", Some("CONFIG_HUGETLB_PAGE=y\n"), 4096));
    assert!(!shares("x86_64", Some("# CONFIG_HUGETLB_PAGE is not set\n"), 4096));
}
