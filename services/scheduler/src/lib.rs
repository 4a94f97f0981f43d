//! The leader: feeds bus events to the placement core and carries out its effects.
