//! Instances: what REST and gRPC do with them.
