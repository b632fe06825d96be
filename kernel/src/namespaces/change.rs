//! How threads get other namespaces: clone(2), unshare(2), setns(2).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::{
    ALL_FLAGS, CgroupNamespace, IpcNamespace, Kind, Namespace, Namespaces, NetNamespace, Network,
    PidNamespace, TimeNamespace, UserNamespace, UtsNamespace,
};
use crate::errno::{Errno, Result};
use crate::fs::FsContext;
use crate::fs::mount_namespace::{self, MountNamespace};
use crate::process::{self, ALL_CAPABILITIES, CAP_SYS_ADMIN, CAP_SYS_CHROOT, Credentials, Process, Thread};

/// Those for which the kernel needs no user namespace to be asked.
const WITHOUT_USER: u32 = ALL_FLAGS & !Kind::User.flag();

/// The credentials of who makes a user namespace and is in it from then on: all capabilities there, none elsewhere.
fn in_new_user_namespace(own: &Credentials, context: &FsContext) -> Result<Credentials> {
    if let Some(entrance) = MountNamespace::current().entrance()
        && !context.root().same(&entrance)
    {
        // A root directory that keeps the process in could be left with the new capabilities.
        return Err(Errno::EPERM);
    }
    let user = UserNamespace::new(own)?;
    Ok(with_all_capabilities(own, user))
}

fn with_all_capabilities(own: &Credentials, user: Arc<UserNamespace>) -> Credentials {
    let mut new = own.clone();
    new.set_user_namespace(user);
    (new.permitted, new.effective, new.inheritable) = (ALL_CAPABILITIES, ALL_CAPABILITIES, 0);
    (new.bounding, new.ambient) = (ALL_CAPABILITIES, 0);
    new.securebits = 0;
    new
}

/// What clone(2) gives a child: its credentials, if they are new, and its namespaces, if they are not the first. `context` is the
/// child's, which goes along to a new tree of mounts.
pub fn for_child(
    flags: u32,
    parent: &Thread,
    context: &FsContext,
) -> Result<(Option<Credentials>, Option<Arc<Namespaces>>)> {
    let old = parent.namespaces();
    // Shared memory tells one time: its new user goes to another with the memory of its own that execve(2) gives it.
    let keeps_time = flags & abi::CLONE_VM != 0;
    let flags = flags & ALL_FLAGS;
    let asked_for = |old: &Arc<Namespaces>| !Arc::ptr_eq(&old.time, &old.time_for_children);
    let enters_time = !keeps_time && old.as_ref().is_some_and(asked_for);
    if flags == 0 && !enters_time {
        return Ok((None, old));
    }
    let own = parent.credentials();
    let new = if flags & Kind::User.flag() != 0 { Some(in_new_user_namespace(&own, context)?) } else { None };
    let maker = new.as_ref().unwrap_or(&own);
    let old = old.unwrap_or_else(|| Namespaces::initial().clone());
    let mut namespaces = copy(flags, &old, maker, context)?;
    // A child is in the namespace that its parent has asked for.
    if !keeps_time && !Arc::ptr_eq(&namespaces.time, &namespaces.time_for_children) {
        namespaces.time_for_children.freeze();
        namespaces.time = namespaces.time_for_children.clone();
    }
    Ok((new, Some(Arc::new(namespaces))))
}

/// Copies of the namespaces in `flags`; the others as they are.
fn copy(flags: u32, old: &Namespaces, maker: &Credentials, context: &FsContext) -> Result<Namespaces> {
    let has = |kind: Kind| flags & kind.flag() != 0;
    if flags & WITHOUT_USER != 0 && !maker.capable_here(CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let mut new = old.clone();
    if has(Kind::Uts) {
        new.uts = UtsNamespace::copy(&old.uts, maker)?;
    }
    if has(Kind::Ipc) {
        new.ipc = IpcNamespace::new(maker)?;
    }
    if has(Kind::Pid) {
        // Numbers of children can be moved down once.
        if !Arc::ptr_eq(&old.pid_for_children, &process::current().process.pid_namespace()) {
            return Err(Errno::EINVAL);
        }
        new.pid_for_children = PidNamespace::new(&old.pid_for_children, maker)?;
    }
    if has(Kind::Cgroup) {
        new.cgroup = CgroupNamespace::new(maker)?;
    }
    if has(Kind::Net) {
        new.net = Network::from(&NetNamespace::new(maker)?);
    }
    if has(Kind::Time) {
        new.time_for_children = TimeNamespace::copy(&old.time, maker)?;
    }
    if has(Kind::Mount) {
        // Last: nothing can fail once root and working directory have moved.
        let (mount, copies) = MountNamespace::copy(&old.mount, maker)?;
        mount_namespace::move_context(context, &copies);
        new.mount = mount;
    }
    Ok(new)
}

/// execve(2): a new program is in the time namespace that was asked for, for children.
pub fn after_exec(thread: &Thread) {
    let Some(old) = thread.namespaces() else { return };
    if Arc::ptr_eq(&old.time, &old.time_for_children) {
        return;
    }
    let mut new = (*old).clone();
    new.time_for_children.freeze();
    new.time = new.time_for_children.clone();
    thread.set_namespaces(Some(Arc::new(new)));
}

/// unshare(2), as far as namespaces are concerned. The thread has an [`FsContext`] of its own where that matters.
pub fn unshare(flags: u32) -> Result<()> {
    let thread = process::current();
    let flags = flags & ALL_FLAGS;
    if flags == 0 {
        return Ok(());
    }
    let own = thread.credentials();
    let context = thread.fs();
    let new =
        if flags & Kind::User.flag() != 0 { Some(in_new_user_namespace(&own, &context)?) } else { None };
    let maker = new.as_ref().unwrap_or(&own);
    let namespaces = copy(flags, &Namespaces::of(&thread), maker, &context)?;
    if flags & Kind::Ipc.flag() != 0 {
        // What is to be undone in semaphores is undone where they are.
        thread.leave_undo_list();
    }
    if flags & WITHOUT_USER != 0 {
        thread.set_namespaces(Some(Arc::new(namespaces)));
    }
    if let Some(new) = new {
        thread.set_credentials(new);
        thread.recharge();
    }
    Ok(())
}

/// What setns(2) changes, all at once.
struct Entering {
    credentials: Option<Credentials>,
    namespaces: Namespaces,
    kinds: u32,
}

impl Entering {
    fn new(thread: &Thread) -> Self {
        Self { credentials: None, namespaces: (*Namespaces::of(thread)).clone(), kinds: 0 }
    }

    /// Checks that the thread may enter the namespace, and notes it.
    fn add(&mut self, thread: &Thread, namespace: &Namespace) -> Result<()> {
        let own = thread.credentials();
        let own = self.credentials.as_ref().unwrap_or(&own);
        self.kinds |= namespace.kind().flag();
        let may_admin = |user: &UserNamespace| {
            if own.capable_in(user, CAP_SYS_ADMIN) && own.capable_here(CAP_SYS_ADMIN) {
                Ok(())
            } else {
                Err(Errno::EPERM)
            }
        };
        match namespace {
            Namespace::Cgroup(cgroup) => {
                may_admin(&cgroup.head.user)?;
                self.namespaces.cgroup = cgroup.clone();
                Ok(())
            }
            Namespace::Net(net) => {
                may_admin(&net.head.user)?;
                self.namespaces.net = Network::from(net);
                Ok(())
            }
            Namespace::Uts(uts) => {
                may_admin(&uts.head.user)?;
                self.namespaces.uts = uts.clone();
                Ok(())
            }
            Namespace::Ipc(ipc) => {
                may_admin(&ipc.head.user)?;
                self.namespaces.ipc = ipc.clone();
                Ok(())
            }
            Namespace::Pid(pid) => {
                pid.check_may_enter(own)?;
                // Down only: a process keeps the numbers that it has.
                if !thread.process.pid_namespace().contains(pid) {
                    return Err(Errno::EINVAL);
                }
                self.namespaces.pid_for_children = pid.clone();
                Ok(())
            }
            Namespace::Time(time) => {
                if thread.process.thread_count() > 1 {
                    return Err(Errno::EUSERS);
                }
                may_admin(&time.head.user)?;
                time.freeze();
                self.namespaces.time = time.clone();
                self.namespaces.time_for_children = time.clone();
                Ok(())
            }
            Namespace::Mount(mount) => {
                may_admin(&mount.head.user)?;
                if !own.capable_here(CAP_SYS_CHROOT) {
                    return Err(Errno::EPERM);
                }
                check_own_context(thread)?;
                self.namespaces.mount = mount.clone();
                Ok(())
            }
            Namespace::User(user) => {
                if Arc::ptr_eq(user, &own.user_namespace()) || thread.process.thread_count() > 1 {
                    return Err(Errno::EINVAL);
                }
                check_own_context(thread)?;
                if !own.capable_in(user, CAP_SYS_ADMIN) {
                    return Err(Errno::EPERM);
                }
                self.credentials = Some(with_all_capabilities(own, user.clone()));
                Ok(())
            }
        }
    }

    fn commit(self, thread: &Thread) -> Result<()> {
        if self.kinds & Kind::Mount.flag() != 0 {
            let entrance = self.namespaces.mount.entrance().ok_or(Errno::EINVAL)?;
            let context = thread.fs();
            context.set_root(entrance.clone());
            context.set_cwd(entrance);
        }
        if self.kinds & Kind::Ipc.flag() != 0 {
            thread.leave_undo_list();
        }
        let other_clocks = !Arc::ptr_eq(&self.namespaces.time, &Namespaces::of(thread).time);
        thread.set_namespaces(Some(Arc::new(self.namespaces)));
        if other_clocks && let Some(space) = thread.process.mm() {
            space.forget_clocks();
        }
        if let Some(credentials) = self.credentials {
            // What it has from outside is not for those who are inside.
            thread.process.dumpable.store(0, Ordering::SeqCst);
            thread.set_credentials(credentials);
            thread.recharge();
        }
        Ok(())
    }
}

/// `EINVAL` when another process shares root and working directory.
fn check_own_context(thread: &Thread) -> Result<()> {
    if thread.fs().is_shared() { Err(Errno::EINVAL) } else { Ok(()) }
}

/// setns(2) with a namespace; `kind` is `CLONE_NEW*` or 0 for any.
pub fn setns(namespace: &Namespace, kind: u32) -> Result<()> {
    if kind != 0 && kind != namespace.kind().flag() {
        return Err(Errno::EINVAL);
    }
    let thread = process::current();
    let mut entering = Entering::new(&thread);
    entering.add(&thread, namespace)?;
    entering.commit(&thread)
}

/// setns(2) with a process: all of the kinds in `flags` that it is in. Which it may look at is for the caller to check.
pub fn set_all_of(target: &Process, flags: u32) -> Result<()> {
    if flags == 0 || flags & !ALL_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    // One that is on its way out has left them.
    let leader = target.leader().filter(|leader| leader.try_fs().is_some()).ok_or(Errno::ESRCH)?;
    let theirs = Namespaces::of(&leader);
    let has = |kind: Kind| flags & kind.flag() != 0;
    let thread = process::current();
    let mut entering = Entering::new(&thread);
    // The user namespace first: the others ask for its capabilities.
    if has(Kind::User) {
        entering.add(&thread, &Namespace::User(leader.credentials().user_namespace()))?;
    }
    for (kind, namespace) in [
        (Kind::Mount, Namespace::Mount(theirs.mount.clone())),
        (Kind::Uts, Namespace::Uts(theirs.uts.clone())),
        (Kind::Ipc, Namespace::Ipc(theirs.ipc.clone())),
        (Kind::Pid, Namespace::Pid(target.pid_namespace())),
        (Kind::Cgroup, Namespace::Cgroup(theirs.cgroup.clone())),
        (Kind::Net, Namespace::Net(theirs.net.to_arc())),
        (Kind::Time, Namespace::Time(theirs.time.clone())),
    ] {
        if has(kind) {
            entering.add(&thread, &namespace)?;
        }
    }
    entering.commit(&thread)
}

/// What of unshare(2)'s flags another one brings along.
pub fn implied(flags: u32) -> u32 {
    let mut flags = flags;
    if flags & abi::CLONE_NEWUSER != 0 {
        flags |= abi::CLONE_THREAD | abi::CLONE_FS;
    }
    if flags & abi::CLONE_NEWNS != 0 {
        flags |= abi::CLONE_FS;
    }
    if flags & abi::CLONE_NEWIPC != 0 {
        flags |= abi::CLONE_SYSVSEM;
    }
    flags
}
