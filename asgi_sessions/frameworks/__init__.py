"""One small module per framework: ``fastapi``, ``litestar``, ``quart``. Plain Starlette needs none."""
