//! The proof that the host holds its address-space lock.

/// What an address-space lock of the host guards on behalf of the library: a reference to it proves that the lock is held, an
/// exclusive one that it is held for writing.
///
/// The host makes one for each address space and keeps it where only a guard of the lock leads to it, as
/// `RwLock<Areas>` with a field of this type in `Areas`. Two for one address space would prove nothing.
#[derive(Debug)]
pub struct SpaceToken<S> {
    space: S,
}

impl<S> SpaceToken<S> {
    /// The token of a new address space.
    pub fn new(space: S) -> SpaceToken<S> {
        SpaceToken { space }
    }

    /// The address space.
    pub fn space(&self) -> &S {
        &self.space
    }
}
