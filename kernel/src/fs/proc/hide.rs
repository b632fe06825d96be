//! What a mount of proc hides: proc(5)'s options `hidepid=`, `gid=` and `subset=pid`.

use alloc::string::String;
use core::fmt::Write;

use crate::errno::{Errno, Result};
use crate::fs::registry;
use crate::process;

/// What is kept from who may not look into a process as ptrace(2) would let him.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hidden {
    /// Nothing but what each file guards itself.
    #[default]
    Nothing,
    /// What is in `/proc/PID`.
    Contents,
    /// That the process is there.
    Processes,
    /// The same, from the group as well.
    NotTraceable,
}

/// The options of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    hidden: Hidden,
    /// Nothing is hidden from members of this group, by the kernel's number.
    group: u32,
    /// Nothing is there but processes.
    pub only_processes: bool,
}

impl Options {
    /// With those of `text`. `EINVAL` for what is no option, or no value of one.
    pub fn changed(mut self, text: &str) -> Result<Self> {
        for (name, value) in registry::options(text) {
            match (name, value.ok_or(Errno::EINVAL)?) {
                ("hidepid", "0" | "off") => self.hidden = Hidden::Nothing,
                ("hidepid", "1" | "noaccess") => self.hidden = Hidden::Contents,
                ("hidepid", "2" | "invisible") => self.hidden = Hidden::Processes,
                ("hidepid", "4" | "ptraceable") => self.hidden = Hidden::NotTraceable,
                ("gid", value) => {
                    let gid = value.parse().map_err(|_| Errno::EINVAL)?;
                    self.group = process::current().credentials().kernel_gid(gid).ok_or(Errno::EINVAL)?;
                }
                ("subset", "pid") => self.only_processes = true,
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(self)
    }

    /// The options as `/proc/mounts` has them, each behind a comma.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.group != 0 {
            let _ = write!(out, ",gid={}", process::current().credentials().shown_gid(self.group));
        }
        out.push_str(match self.hidden {
            Hidden::Nothing => "",
            Hidden::Contents => ",hidepid=noaccess",
            Hidden::Processes => ",hidepid=invisible",
            Hidden::NotTraceable => ",hidepid=ptraceable",
        });
        if self.only_processes {
            out.push_str(",subset=pid");
        }
        out
    }

    /// Does the mount show the current thread that a process is there? `may_look`: into it, as ptrace(2) would let it.
    pub fn shows(&self, may_look: impl FnOnce() -> bool) -> bool {
        match self.hidden {
            Hidden::Nothing | Hidden::Contents => true,
            Hidden::Processes => self.is_in_group() || may_look(),
            Hidden::NotTraceable => may_look(),
        }
    }

    /// Does it show what is in the directory of a process that it shows?
    pub fn opens(&self, may_look: impl FnOnce() -> bool) -> bool {
        self.hidden != Hidden::Contents || self.is_in_group() || may_look()
    }

    fn is_in_group(&self) -> bool {
        process::current().credentials().in_group(self.group)
    }
}
