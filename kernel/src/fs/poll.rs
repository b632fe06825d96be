//! Readiness of a file, as poll(2), select(2) and epoll(7) report it.

use bitflags::bitflags;

bitflags! {
    /// Readiness events; the values are those of `struct pollfd` and `struct epoll_event`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// Data to read, or end of file.
        const IN = 0x001;
        /// Urgent or exceptional data.
        const PRI = 0x002;
        /// A write would not block.
        const OUT = 0x004;
        /// An error is pending; reported whether asked for or not.
        const ERR = 0x008;
        /// The peer is gone; reported whether asked for or not.
        const HUP = 0x010;
        /// The descriptor is not open; poll(2) only.
        const NVAL = 0x020;
        /// Normal data to read.
        const RDNORM = 0x040;
        /// Priority band data to read.
        const RDBAND = 0x080;
        /// Normal data may be written.
        const WRNORM = 0x100;
        /// Priority band data may be written.
        const WRBAND = 0x200;
        /// Unused by Linux, accepted.
        const MSG = 0x400;
        /// The peer has shut down its writing side.
        const RDHUP = 0x2000;
    }
}

impl Events {
    /// What a file that never blocks reports: a regular file, a directory, `/dev/null`.
    pub const ALWAYS: Events = Events::IN.union(Events::OUT).union(Events::RDNORM).union(Events::WRNORM);
    /// Reported even when the caller did not ask for it.
    pub const UNCONDITIONAL: Events = Events::ERR.union(Events::HUP).union(Events::NVAL);
    /// Readable, in both spellings.
    pub const READABLE: Events = Events::IN.union(Events::RDNORM);
    /// Writable, in both spellings.
    pub const WRITABLE: Events = Events::OUT.union(Events::WRNORM);
}
