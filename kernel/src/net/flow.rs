//! Flows: what goes from one address to another.

use core::hash::{Hash, Hasher};
use core::net::SocketAddr;

use siphasher::sip::SipHasher13;

use crate::random;
use crate::sync::Once;

/// A number of the flow between two addresses: always the same, and none that somebody outside can tell from others.
pub fn number(one: SocketAddr, other: SocketAddr) -> u64 {
    static KEY: Once<[u64; 2]> = Once::new();
    let [first, second] = *KEY.call_once(|| [random::number(), random::number()]);
    let mut hasher = SipHasher13::new_with_keys(first, second);
    (one, other).hash(&mut hasher);
    hasher.finish()
}
