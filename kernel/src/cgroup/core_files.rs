//! The files that every group has.

use alloc::sync::Arc;
use core::fmt::Write as _;
use core::sync::atomic::Ordering;

use super::group::Group;
use super::hierarchy::{self, Kind};
use super::knob::{Interface, parse_limit, push_limit};
use super::{Controller, freezer, member};
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::namespaces::View;
use crate::process::{self, Pid, Process, tree};

/// The member with the lowest number above `pid`: one step of a walk over all.
pub(super) fn member_after(group: &Group, pid: Pid) -> Option<Arc<Process>> {
    if !group.is_root() {
        let tree = tree::look();
        let members = group.members.get(&tree);
        return members.lower_bound(intrusive_collections::Bound::Excluded(&pid)).clone_pointer();
    }
    let mut last = pid;
    loop {
        let process = process::process_after(last)?;
        last = process.pid;
        if process.cgroup.group().is_none() && !process.has_ended() {
            return Some(process);
        }
        crate::sched::cond_resched();
    }
}

fn each_member(group: &Group, mut visit: impl FnMut(Arc<Process>) -> Result<()>) -> Result<()> {
    let mut last = 0;
    while let Some(process) = member_after(group, last) {
        last = process.pid;
        visit(process)?;
        crate::sched::cond_resched();
    }
    Ok(())
}

fn push_controllers(text: &mut Text, bits: u32) {
    let names = Controller::ALL.iter().filter(|(controller, _)| bits & controller.bit() != 0);
    let mut any = false;
    for (_, name) in names {
        text.push_str(if any { " " } else { "" });
        text.push_str(name);
        any = true;
    }
    if any {
        text.push_str("\n");
    }
}

/// `+hugetlb -pids`: what is to be on, and what off.
fn parse_controllers(value: &str) -> Result<(u32, u32)> {
    let (mut on, mut off) = (0, 0);
    for word in value.split(' ').filter(|word| !word.is_empty()) {
        let (sign, name) = word.split_at_checked(1).ok_or(Errno::EINVAL)?;
        let known = Controller::ALL.iter().find(|(_, known)| *known == name);
        let bit = known.ok_or(Errno::EINVAL)?.0.bit();
        match sign {
            "+" => (on, off) = (on | bit, off & !bit),
            "-" => (on, off) = (on & !bit, off | bit),
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok((on, off))
}

fn pid(value: &str) -> Result<Pid> {
    let number: i32 = value.parse().map_err(|_| Errno::EINVAL)?;
    u32::try_from(number).map_err(|_| Errno::EINVAL)
}

/// A count of `cgroup.max.*`.
fn parse_most(value: &str) -> Result<u32> {
    let most = parse_limit(value, i32::MAX as u64, Errno::ERANGE)?;
    Ok(most.map_or(u32::MAX, |most| most as u32))
}

fn push_most(text: &mut Text, most: u32) {
    push_limit(text, (most != u32::MAX).then_some(u64::from(most)));
}

pub(super) const INTERFACES: [Interface; 11] = [
    Interface::new("cgroup.controllers").and_root().read(|group, text| {
        push_controllers(text, group.controllers());
        Ok(())
    }),
    Interface::new("cgroup.events").read(|group, text| {
        let _ = writeln!(text, "populated {}", u8::from(member::is_populated(group)));
        let _ = writeln!(text, "frozen {}", u8::from(freezer::is_frozen(group)));
        Ok(())
    }),
    Interface::new("cgroup.freeze")
        .read(|group, text| {
            let _ = writeln!(text, "{}", u8::from(freezer::is_asked(group)));
            Ok(())
        })
        .write(|group, value, _| match value.parse::<i32>() {
            Ok(freeze @ 0..=1) => freezer::set(group, freeze == 1),
            Ok(_) => Err(Errno::ERANGE),
            Err(_) => Err(Errno::EINVAL),
        }),
    Interface::new("cgroup.kill").write(|group, value, _| match value.parse::<i32>() {
        Ok(1) => hierarchy::kill(group),
        Ok(_) => Err(Errno::ERANGE),
        Err(_) => Err(Errno::EINVAL),
    }),
    Interface::new("cgroup.max.depth")
        .and_root()
        .read(|group, text| {
            push_most(text, group.max_depth.load(Ordering::SeqCst));
            Ok(())
        })
        .write(|group, value, _| {
            group.max_depth.store(parse_most(value)?, Ordering::SeqCst);
            Ok(())
        }),
    Interface::new("cgroup.max.descendants")
        .and_root()
        .read(|group, text| {
            push_most(text, group.max_descendants.load(Ordering::SeqCst));
            Ok(())
        })
        .write(|group, value, _| {
            group.max_descendants.store(parse_most(value)?, Ordering::SeqCst);
            Ok(())
        }),
    Interface::new("cgroup.procs")
        .and_root()
        .read(|group, text| {
            let view = View::current();
            each_member(group, |process| {
                let _ = writeln!(text, "{}", view.process(&process));
                Ok(())
            })
        })
        .write(|group, value, opener| hierarchy::attach(group, pid(value)?, opener, true)),
    Interface::new("cgroup.stat").and_root().read(|group, text| {
        let _ = writeln!(text, "nr_descendants {}", group.descendants.load(Ordering::SeqCst));
        let _ = writeln!(text, "nr_dying_descendants {}", group.dying.load(Ordering::SeqCst));
        Ok(())
    }),
    Interface::new("cgroup.subtree_control")
        .and_root()
        .read(|group, text| {
            push_controllers(text, group.handed_down());
            Ok(())
        })
        .write(|group, value, _| {
            let (on, off) = parse_controllers(value)?;
            hierarchy::set_subtree_control(group, on, off)
        }),
    Interface::new("cgroup.threads")
        .and_root()
        .read(|group, text| {
            let view = View::current();
            each_member(group, |process| {
                for thread in process::threads_of(&process)? {
                    let _ = writeln!(text, "{}", view.thread(&thread));
                    crate::sched::cond_resched();
                }
                Ok(())
            })
        })
        .write(|group, value, opener| hierarchy::attach(group, pid(value)?, opener, false)),
    Interface::new("cgroup.type").read(|group, text| {
        text.push_str(match hierarchy::kind(group) {
            Kind::Domain => "domain\n",
            Kind::ThreadRoot => "domain threaded\n",
            Kind::Invalid => "domain invalid\n",
        });
        Ok(())
    }),
];
