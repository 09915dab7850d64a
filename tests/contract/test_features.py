"""What a model scanner is compared by: each feature has tests that show it on real parts."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

FEATURES: dict[str, tuple[str, ...]] = {
    "a service over HTTP": ("e2e/test_stack.py::test_a_stranger_submits_a_model",),
    "submit, an id at once, poll": (
        "service/test_submissions.py::test_raw_body_becomes_row_message_and_blob",
        "service/test_scans.py::test_wait_returns_when_the_scan_ends",
    ),
    "202, Location, Retry-After": (
        "service/test_submissions.py::test_raw_body_becomes_row_message_and_blob",
        "service/test_scans.py::test_wait_ends_without_a_result_and_asks_to_retry",
    ),
    "cancel": (
        "service/test_scans.py::test_cancel_queued_twice_then_finished",
        "faults/test_lost_messages.py::test_a_cancelled_running_scan_stops",
    ),
    "signed webhooks": ("service/webhooks/test_messages.py::test_ended_scan_is_told_signed",),
    "live progress": (
        "service/test_events.py::test_live_events_arrive_while_they_happen",
        "service/test_events.py::test_resume_has_no_gap_and_no_repeat",
    ),
    "JSON report": ("service/test_results.py::test_json_report_is_the_published_one",),
    "SARIF": (
        "golden/test_formats.py::test_sarif_fits_its_schema",
        "golden/test_formats.py::test_sarif_reads_back_with_another_tool",
    ),
    "CycloneDX": ("golden/test_formats.py::test_cyclonedx_fits_its_schema",),
    "JUnit and HTML": (
        "golden/test_formats.py::test_junit_reads_back_with_its_counts",
        "golden/test_html.py::test_page_says_everything",
    ),
    "policies": (
        "service/test_policies.py::test_worst_outcome_decides_and_is_named",
        "service/test_policies.py::test_old_report_is_judged_anew",
    ),
    "exit codes tell found, failed and undecided apart": (
        "e2e/test_gates.py::test_the_command_exits_with_the_verdict",
        "e2e/test_gates.py::test_what_goes_wrong_is_an_error_and_no_verdict",
    ),
    "GitHub Action and GitLab job": (
        "e2e/test_gates.py::test_the_action_tells_github_the_verdict",
        "e2e/test_gates.py::test_the_gitlab_job_exits_with_the_verdict",
    ),
    "uploads of gigabytes": ("service/test_memory.py::test_twenty_uploads_at_once",),
    "resumable uploads": (
        "service/test_uploads.py::test_killed_server_goes_on_at_the_offset",
        "web/test_dropzone.py::test_upload_goes_on_after_a_break_and_after_a_reload",
    ),
    "known bytes are not sent again": (
        "service/test_submissions.py::test_known_hash_needs_no_bytes",
        "service/test_client_uploads.py::test_known_bytes_are_not_sent",
    ),
    "by URL and by Hugging Face id, from allowed hosts": (
        "service/test_remote_sources.py::test_file_of_a_url_is_queued_as_if_it_was_uploaded",
        "service/test_remote_sources.py::test_file_of_hugging_face_is_pinned_to_the_commit_and_checked",
    ),
    "keys with scopes": (
        "security/test_tenancy.py::test_every_route_asks_for_a_key",
        "security/test_tenancy.py::test_scopes_are_enforced",
    ),
    "tenants and quotas": (
        "security/test_routes_of_others.py::test_what_another_tenant_has_is_not_there",
        "service/test_limits.py::test_key_that_asks_too_often_is_told_when_to_come_back",
    ),
    "bounds on archives": (
        "security/test_archives.py::test_archives_that_unpack_without_end_cost_next_to_nothing",
        "security/test_archives.py::test_archives_that_write_elsewhere_are_refused",
    ),
    "audit log": (
        "security/test_audit.py::test_what_clients_do_is_told",
        "security/test_audit_command.py::test_a_row_altered_by_a_superuser_is_named",
    ),
    "Prometheus and OpenTelemetry": (
        "service/test_application.py::test_metrics_count_requests_and_the_queue",
        "service/test_telemetry.py::test_requests_are_traced_to_a_collector",
    ),
    "signed results": (
        "security/test_signatures.py::test_no_mutation_goes_unseen",
        "security/test_signatures.py::test_another_implementation_agrees",
    ),
    "MITRE ATLAS": ("golden/test_formats.py::test_findings_are_sorted_by_what_was_done_to_the_file",),
    "looks at behaviour, returns a repaired model": (
        "engine/test_probes.py::test_a_planted_trigger_leads_the_sketch_and_is_a_finalist",
        "engine/test_confirm.py::test_a_trigger_stands_out_from_ordinary_words",
        "engine/test_unlearn.py::test_sau_takes_the_effect_out_of_the_unet",
    ),
}


@cache
def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_is_shown(feature: str) -> None:
    for shown in FEATURES[feature]:
        path, name = shown.split("::")
        assert name in names_in(TESTS / path), shown
