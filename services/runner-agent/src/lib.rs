//! One per host: accelerators, engines and the token pump.
