//! Boots whose console is talked to: archives of busybox, what ends a kernel, and what it refuses.

use std::path::PathBuf;

use anyhow::{Context, Result};
use roundtable::initramfs::Initramfs;
use roundtable::run::Parts;
use roundtable::size::Size;

use super::Subject;
use super::boots::{BOOT, Boot, End, Kernels, Script, Talk, Work};
use Talk::{Expect, Send};

/// The boots, in their order.
pub fn boots() -> Vec<Boot> {
    let mut boots = vec![
        Boot {
            name: "pools-at-boot",
            memory: Size::gibibytes(3),
            pools: (100, 1),
            work: Work::Console(Script {
                archive: pool_archive,
                gzip: false,
                talk: POOLS,
                end: End::PowerOff,
            }),
            ..BOOT
        },
        Boot {
            name: "init-dies",
            // The kernel without its first process says so and restarts, which -no-reboot makes an end.
            work: Work::Console(Script {
                archive: |parts| busybox_init(parts, "#!/bin/busybox sh\nexit 7\n"),
                gzip: false,
                // What init itself said before, Linux may write after it.
                talk: &[Expect("Attempted to kill init!")],
                end: End::PowerOff,
            }),
            ..BOOT
        },
        Boot {
            name: "selftest",
            parameters: &["selftest=1"],
            kernels: Kernels::Ours,
            work: Work::Console(Script {
                archive: |parts| busybox_init(parts, "#!/bin/busybox sh\nexec busybox poweroff -f\n"),
                gzip: false,
                talk: &[Expect("selftest: page tables change under readers"), Expect("selftest: all passed")],
                end: End::PowerOff,
            }),
            ..BOOT
        },
    ];
    boots.extend(shells());
    boots.extend(refusals());
    boots.extend(broken_rules());
    boots
}

/// A kernel that breaks a rule of its locks says so and ends: what the other tests rely on.
fn broken_rules() -> [Boot; 7] {
    let broken = |name, parameters, talk| Boot {
        name,
        parameters,
        kernels: Kernels::Ours,
        own: Some(Subject::Checked),
        work: Work::Console(Script {
            archive: |parts| busybox_init(parts, "#!/bin/busybox sh\nbusybox sleep 60\n"),
            gzip: false,
            talk,
            end: End::PowerOff,
        }),
        ..BOOT
    };
    const REVERSED: &[Talk] = &[
        Expect("Kernel panic - "),
        Expect("lockdep: an order of locks is reversed"),
        Expect("breaker.rs"),
        Expect("while held:"),
        Expect("breaker.rs"),
    ];
    [
        broken("lock-order", &["break_lock_rule=order"], REVERSED),
        broken("lock-order-long-way", &["break_lock_rule=long-way"], REVERSED),
        broken(
            "lock-twice",
            &["break_lock_rule=twice"],
            &[Expect("Kernel panic - "), Expect("lockdep: a lock is taken at"), Expect("breaker.rs")],
        ),
        broken(
            "lock-sleep",
            &["break_lock_rule=sleep"],
            &[Expect("Kernel panic - "), Expect("sleeps with 1 spin locks held")],
        ),
        broken(
            "lock-interrupts",
            &["break_lock_rule=interrupts"],
            &[Expect("Kernel panic - "), Expect("sleeps with interrupts off")],
        ),
        broken(
            "lock-allocation",
            &["break_lock_rule=allocation"],
            &[
                Expect("Kernel panic - "),
                Expect("lockdep: 8 bytes are allocated under the lock"),
                Expect("of kind Irq"),
            ],
        ),
        broken(
            "lock-allocation-spinning",
            &["break_lock_rule=allocation-spinning"],
            &[
                Expect("a lock that grows may"),
                Expect("Kernel panic - "),
                Expect("lockdep: 8 bytes are allocated under the lock"),
                Expect("of kind Spin"),
            ],
        ),
    ]
}

/// What is wrong about a protocol stops the kernel, with the reason.
fn refusals() -> [Boot; 2] {
    let refused = |name, parameters, talk| Boot {
        name,
        parameters,
        kernels: Kernels::Ours,
        work: Work::Console(Script {
            archive: |parts| busybox_init(parts, "#!/bin/busybox sh\necho 'it runs all the same'\n"),
            gzip: false,
            talk,
            end: End::PowerOff,
        }),
        ..BOOT
    };
    [
        refused(
            "lab-only",
            &["hugetlb_sharing=unfenced"],
            &[Expect("only a kernel built with the feature lab has it")],
        ),
        refused(
            "no-such-protocol",
            &["hugetlb_sharing=no-such"],
            &[Expect("no-such: no such protocol; this kernel has none, ")],
        ),
    ]
}

/// Debian's busybox as a person uses it: started by the kernel, typed at.
fn shells() -> [Boot; 2] {
    let shell =
        |talk| Work::Console(Script { archive: shell_archive, gzip: false, talk, end: End::PowerOff });
    [
        Boot { name: "shell", limit: 180, work: shell(SHELL), ..BOOT },
        Boot { name: "shell-jobs", limit: 180, work: shell(SHELL_JOBS), ..BOOT },
    ]
}

const POOLS: &[Talk] = &[Expect("pools 100 1"), Expect("bye")];

const SHELL: &[Talk] = &[
    Expect("# "),
    Send("echo $((6 * 7)) is the answer | tr a-z A-Z > /tmp/a && cat /tmp/a\n"),
    Expect("\n42 IS THE ANSWER\n"),
    Send("for i in 1 2 3; do echo line-$i; done | wc -l\n"),
    Expect("\n3\n"),
    Send("mkdir -p /mnt && mount -t hugetlbfs none /mnt && mount | grep -c '^none on /mnt type hugetlbfs'\n"),
    Expect("\n1\n"),
    Send("echo 8 > /proc/sys/vm/nr_hugepages; grep HugePages_Free /proc/meminfo\n"),
    Expect("HugePages_Free:        8\n"),
    Send("dd if=/dev/zero of=/tmp/z bs=4k count=100 2>&1 | head -n 1; wc -c < /tmp/z\n"),
    Expect("100+0 records in"),
    Expect("\n409600\n"),
    // A typing error, taken back with the delete key: line editing.
    Send("echo wrongg\x7f\x7f\x7f\x7f\x7f\x7fright\n"),
    Expect("\nright\n"),
    Send("ps | grep -c '[s]h$'; echo done-$?\n"),
    Expect("\ndone-0\n"),
    Send("no-such-program; echo status-$?\n"),
    Expect("\nstatus-127\n"),
    Send("poweroff -f\n"),
];

const SHELL_JOBS: &[Talk] = &[
    Expect("# "),
    // The first process has no session, so what it opens does not become its terminal.
    Send("exec 3<>/dev/ttyS0; cut -d ' ' -f 6-8 /proc/1/stat\n"),
    Expect("\n0 0 -1\n"),
    // The console cannot be a controlling terminal, so job control needs the device behind it; and children of PID 1
    // are an orphaned process group, which the terminal does not stop, so this shell is not PID 1.
    Send("setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'\n"),
    Expect("# "),
    Send("echo session-$(($(cut -d ' ' -f 6 /proc/$$/stat) - $$))\n"),
    Expect("\nsession-0\n"),
    Expect("# "),
    // The line is hung up when the session ends, and what was typed is lost with it. The console on it is spared, and the next
    // session gets the line.
    Send("exit\n"),
    Expect("exit\n"),
    Expect("# "),
    Send("echo back-on-the-console >/dev/console; echo lost >&3; echo status-$?\n"),
    Expect("\nback-on-the-console\n"),
    Expect("\nstatus-1\n"),
    Send("setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'\n"),
    Expect("# "),
    Send("sleep 1000 & echo started-$!\n"),
    Expect("\nstarted-"),
    Send("jobs\n"),
    Expect("Running"),
    Send("kill %1; wait; echo gone-$?\n"),
    Expect("gone-"),
    // A key pressed before the job is in front would be the shell's: it speaks first.
    Send("(echo in-front-1; sleep 1000; echo survived)\n"),
    Expect("\nin-front-1\n"),
    // Ctrl-C ends the job in front, not the shell.
    Send("\x03"),
    Expect("# "),
    Send("echo status-$?\n"),
    Expect("\nstatus-130\n"),
    Send("(echo in-front-2; sleep 1000)\n"),
    Expect("\nin-front-2\n"),
    // Ctrl-Z stops it.
    Send("\x1a"),
    Expect("Stopped"),
    Send("kill -9 %1; echo still-here\n"),
    Expect("\nstill-here\n"),
    Send("busybox poweroff -f\n"),
];

fn busybox(parts: &Parts) -> Result<&PathBuf> {
    parts.busybox.as_ref().context("there is no busybox")
}

/// Busybox, and a script for it as /init. No folder besides /bin.
pub fn busybox_init(parts: &Parts, script: &str) -> Result<Initramfs> {
    let mut initramfs = Initramfs::empty();
    initramfs.add_program("/bin/busybox", busybox(parts)?)?;
    initramfs.add_bytes("/init", 0o755, script);
    Ok(initramfs)
}

fn pool_archive(parts: &Parts) -> Result<Initramfs> {
    busybox_init(parts, include_str!("pools.sh"))
}

/// A whole root with busybox's links, whose /init ends up in a shell on the console.
pub fn shell_archive(parts: &Parts) -> Result<Initramfs> {
    let mut initramfs = Initramfs::new();
    initramfs.add_busybox(busybox(parts)?)?;
    initramfs.add_bytes("/init", 0o755, include_str!("shell.sh"));
    Ok(initramfs)
}
