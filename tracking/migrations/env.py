"""Run migrations on the connection that `tracking.migrate` opened, inside its transaction."""

from alembic import context

from tracking.models import Model

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Model.metadata,
    transactional_ddl=True,
)
context.run_migrations()
