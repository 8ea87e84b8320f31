//! Every durable change, as a list of named steps.
