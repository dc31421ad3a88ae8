"""``predump criu``: what has to do with CRIU's own formats and protocols."""

import typer

from predump.criu_images_cli import (
    dedup_command,
    diff_command,
    export_command,
    import_command,
    show_command,
    verify_command,
)

criu_app = typer.Typer(
    help="CRIU's own formats and protocols, with real CRIU at the other end.", no_args_is_help=True
)
criu_app.command("export")(export_command)
criu_app.command("import")(import_command)
criu_app.command("show")(show_command)
criu_app.command("verify")(verify_command)
criu_app.command("diff")(diff_command)
criu_app.command("dedup")(dedup_command)
