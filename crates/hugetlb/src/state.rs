//! What a protocol of sharing keeps with a file or a mapping.

use alloc::boxed::Box;
use core::any::Any;
use core::fmt;

/// The state of the protocol in use. Only that protocol knows its type.
pub(crate) struct State(Option<Box<dyn Any + Send + Sync>>);

impl State {
    /// Of a protocol that keeps nothing.
    pub(crate) const NONE: State = State(None);

    /// A state.
    pub(crate) fn new<T: Send + Sync + 'static>(state: T) -> State {
        State(Some(Box::new(state)))
    }

    /// The state, if it is of this type.
    pub(crate) fn get<T: 'static>(&self) -> Option<&T> {
        self.0.as_deref()?.downcast_ref()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}
