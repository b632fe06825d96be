//! Some things at a time: as much as is gone through with one hold of a spin lock.

/// How many.
pub(crate) const AT_A_TIME: usize = if cfg!(roundtable_model) { 2 } else { 64 };

/// What was taken out in one hold: it is freed after the lock.
pub(crate) type Few<T> = [Option<T>; AT_A_TIME];

/// None of them.
pub(crate) fn few<T>() -> Few<T> {
    [const { None }; AT_A_TIME]
}
