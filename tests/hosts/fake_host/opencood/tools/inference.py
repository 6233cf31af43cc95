"""Inference of a run folder."""

import argparse

import torch
from torch.utils.data import DataLoader

import opencood.hypes_yaml.yaml_utils as yaml_utils
from opencood.data_utils.datasets import build_dataset
from opencood.tools import inference_utils, train_utils
from opencood.utils import eval_utils


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--fusion_method", required=True)
    opt = parser.parse_args()
    hypes = yaml_utils.load_yaml(None, opt)
    dataset = build_dataset(hypes, visualize=True, train=False)
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=0,
        collate_fn=dataset.collate_batch_test,
    )
    model = train_utils.create_model(hypes)
    _, model = train_utils.load_saved_model(opt.model_dir, model)
    model.eval()
    stat = {iou: {"tp": [], "fp": [], "gt": 0, "score": []} for iou in (0.3, 0.5, 0.7)}
    for batch_data in loader:
        with torch.no_grad():
            boxes, scores, truth = inference_utils.inference_intermediate_fusion(
                batch_data, model, dataset
            )
            for iou in stat:
                eval_utils.caluclate_tp_fp(boxes, scores, truth, stat, iou)
    eval_utils.eval_final_results(stat, opt.model_dir, False)


if __name__ == "__main__":
    main()
