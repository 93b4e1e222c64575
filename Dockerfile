# emo-r3 serve in a container, on a CPU:
#   docker build --tag emo-r3 . && docker run --rm --publish 8000:8000 --env EMO_R3_SERVER_TOKEN emo-r3
# Another model: append `emo-r3 serve --host 0.0.0.0 --model REPO`, and keep its files: --volume emo-r3:/home/emo/.cache
FROM python:3.12-slim
RUN useradd --create-home emo
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY emo_r3 ./emo_r3
# torch for CPUs, two gigabytes smaller; with CUDA: docker build --build-arg TORCH=https://pypi.org/simple .
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url ${TORCH} --constraint constraints.txt torch torchvision \
    && pip install --no-cache-dir --constraint constraints.txt '.[serve,photos]' \
    && rm -rf /src/*
USER emo
WORKDIR /home/emo
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
CMD ["emo-r3", "serve", "--host", "0.0.0.0"]
