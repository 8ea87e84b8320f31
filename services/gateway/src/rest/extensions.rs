//! The API extensions that this server announces: only what is done, each with the test that shows it.

/// An extension of LXD's API and the test that proves it.
#[derive(Debug)]
pub(super) struct Extension {
    /// Name that clients look for.
    pub(super) name: &'static str,
    /// A test function of this repository.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test below"))]
    pub(super) test: &'static str,
}

const fn ext(name: &'static str, test: &'static str) -> Extension {
    Extension { name, test }
}

/// Never announced: `storage_and_profile_operations`, `storage_and_network_operations` and
/// `project_delete_operation`. Their absence keeps every client on the synchronous answers that
/// 5.0.2 needs.
pub(super) const EXTENSIONS: &[Extension] = &[
    ext("etag", "quotes_do_not_matter_and_absence_passes"),
    ext("patch", "patch_merges_config_per_key"),
    ext(
        "container_last_used_at",
        "a_launch_is_listed_with_its_state",
    ),
    ext("container_cpu_time", "a_launch_is_listed_with_its_state"),
    ext("container_full", "a_launch_is_listed_with_its_state"),
    ext("instance_get_full", "a_launch_is_listed_with_its_state"),
    ext("instances", "a_launch_is_listed_with_its_state"),
    ext("network_state", "a_launch_is_listed_with_its_state"),
    ext("api_filtering", "clauses_join_left_to_right"),
    ext(
        "operation_description",
        "the_final_event_follows_the_last_update",
    ),
    ext("event_lifecycle", "lifecycle_events_reach_listeners"),
    ext("event_location", "lifecycle_events_reach_listeners"),
    ext("event_project", "the_final_event_follows_the_last_update"),
    ext(
        "event_lifecycle_requestor_address",
        "lifecycle_events_reach_listeners",
    ),
    ext(
        "container_exec_signal_handling",
        "exec_carries_output_signals_and_the_exit_code",
    ),
    ext(
        "container_exec_user_group_cwd",
        "exec_carries_output_signals_and_the_exit_code",
    ),
    ext("console", "the_console_log_is_read_and_cleared"),
    ext("file_delete", "files_go_both_ways"),
    ext("file_append", "files_go_both_ways"),
    ext("file_symlinks", "files_go_both_ways"),
    ext("file_get_symlink", "files_go_both_ways"),
    ext("directory_manipulation", "files_go_both_ways"),
    ext("instance_file_head", "files_go_both_ways"),
    ext("container_stateless_copy", "a_copy_has_its_own_volume"),
    ext("container_only_migration", "a_copy_has_its_own_volume"),
    ext("container_copy_project", "a_copy_has_its_own_volume"),
    ext(
        "snapshot_expiry",
        "snapshots_are_made_renamed_expired_and_deleted",
    ),
    ext(
        "snapshot_expiry_creation",
        "snapshots_are_made_renamed_expired_and_deleted",
    ),
    ext(
        "instance_snapshot_never",
        "snapshots_are_made_renamed_expired_and_deleted",
    ),
    ext(
        "snapshot_scheduling",
        "snapshots_are_taken_when_due_and_removed_when_over",
    ),
    ext(
        "snapshot_schedule_aliases",
        "names_come_as_often_as_they_say",
    ),
    ext(
        "custom_volume_snapshot_expiry",
        "snapshots_are_taken_when_due_and_removed_when_over",
    ),
    ext(
        "instance_bulk_state_change",
        "a_bulk_change_reaches_every_instance",
    ),
    ext(
        "instance_all_projects",
        "all_projects_and_a_project_exclude_one_another",
    ),
    ext("projects", "only_the_default_project_is_there"),
    ext("project_usage", "only_the_default_project_is_there"),
    ext("image_force_refresh", "images_and_aliases"),
    ext("entity_description", "patch_merges_config_per_key"),
    ext(
        "container_image_properties",
        "a_launch_is_listed_with_its_state",
    ),
    ext("storage", "pools_and_volumes_are_listed"),
    ext("storage_volume_state", "pools_and_volumes_are_listed"),
    ext("storage_volume_state_total", "pools_and_volumes_are_listed"),
    ext(
        "storage_api_volume_snapshots",
        "pools_and_volumes_are_listed",
    ),
    ext("resources", "the_host_is_shown_as_far_as_it_is_told"),
    ext("resources_v2", "the_host_is_shown_as_far_as_it_is_told"),
    ext(
        "storage_api_volume_rename",
        "volumes_are_renamed_copied_and_deleted",
    ),
    ext(
        "storage_api_local_volume_handling",
        "a_volume_moves_to_another_pool",
    ),
    ext("storage_volume_api_filtering", "volumes_are_filtered"),
    ext("storage_volumes_all_projects", "volumes_are_filtered"),
    ext(
        "storage_images_delete",
        "the_copy_of_an_image_can_be_dropped",
    ),
    ext(
        "resources_cpu_socket",
        "cpus_are_grouped_by_socket_and_core",
    ),
    ext(
        "resources_cpu_core_die",
        "cpus_are_grouped_by_socket_and_core",
    ),
    ext(
        "resources_cpu_threads_numa",
        "cpus_are_grouped_by_socket_and_core",
    ),
    ext("network", "networks_are_created_and_leases_listed"),
    ext("network_leases", "networks_are_created_and_leases_listed"),
    ext(
        "network_leases_location",
        "networks_are_created_and_leases_listed",
    ),
    ext("instance_nic_network", "a_launch_is_listed_with_its_state"),
    ext("profile_usedby", "profiles_name_their_users"),
    ext("image_profiles", "images_and_aliases"),
    ext("image_types", "images_and_aliases"),
    ext("image_create_aliases", "images_and_aliases"),
    ext("images_expiry", "images_and_aliases"),
    ext("kernel_features", "the_server_says_what_it_is"),
    ext("lxc_features", "the_server_says_what_it_is"),
    ext("api_os", "the_server_says_what_it_is"),
    ext(
        "server_supported_storage_drivers",
        "the_server_says_what_it_is",
    ),
    ext("usedby_consistency", "profiles_name_their_users"),
    ext("warnings", "warnings_are_listed"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn functions(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                functions(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let mut marked = false;
                for line in text.lines().map(str::trim) {
                    if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                        marked = true;
                    } else if let Some((_, rest)) = line.split_once("fn ") {
                        let name = rest.split('(').next().unwrap_or_default();
                        if std::mem::take(&mut marked) {
                            found.insert(name.to_owned());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_announced_extension_names_a_test_that_is_there() {
        let mut found = BTreeSet::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        functions(&root.join("src"), &mut found);
        functions(&root.join("tests"), &mut found);
        functions(&root.join("../../crates/schedule/src"), &mut found);
        for extension in EXTENSIONS {
            assert!(
                found.contains(extension.test),
                "{} names {}, which is no test",
                extension.name,
                extension.test
            );
        }
    }

    #[test]
    fn none_is_announced_twice_or_against_5_0_2() {
        let names: BTreeSet<&str> = EXTENSIONS.iter().map(|e| e.name).collect();
        assert_eq!(names.len(), EXTENSIONS.len());
        for never in [
            "storage_and_profile_operations",
            "storage_and_network_operations",
            "project_delete_operation",
        ] {
            assert!(!names.contains(never));
        }
    }
}
