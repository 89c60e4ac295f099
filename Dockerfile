# One image for head, workers and the endpoint:
#   docker build -t recollect .
#   docker run --rm -p 8000:8000 -e RECOLLECT_TOKEN -v "$PWD/runs:/app/runs" recollect recollect serve runs/demo/winner --host 0.0.0.0
FROM python:3.11-slim
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
RUN useradd --create-home recollect
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY platform platform
COPY trainables trainables
COPY serve serve
COPY experiments experiments
RUN pip install --no-cache-dir -c constraints.txt -e '.[all]'
RUN mkdir runs && chown recollect runs
USER recollect
EXPOSE 8000 8265
CMD ["recollect", "--help"]
