//! `berth.gateway.v1`, `google.longrunning.Operations` and `OperationWatchService`.
