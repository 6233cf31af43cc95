"""Inference of a run folder."""

import argparse

import torch
import torch.utils.data as torch_data

import opencood.data_utils.datasets as host_datasets
import opencood.hypes_yaml.yaml_utils as host_yaml
import opencood.tools.inference_utils as answers
import opencood.tools.train_utils as tools
import opencood.utils.eval_utils as counts


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model_dir", "--fusion_method"):
        parser.add_argument(name, required=True)
    chosen = parser.parse_args()
    params = host_yaml.load_yaml(None, chosen)
    samples = host_datasets.build_dataset(params, visualize=True, train=False)
    one_by_one = torch_data.DataLoader(samples, collate_fn=samples.collate_batch_test)
    _, network = tools.load_saved_model(chosen.model_dir, tools.create_model(params))
    network.eval()
    stat = {iou: {"tp": [], "fp": [], "gt": 0, "score": []} for iou in (0.3, 0.5, 0.7)}
    with torch.no_grad():
        for sample in one_by_one:
            found = answers.inference_intermediate_fusion(sample, network, samples)
            for iou in stat:
                counts.caluclate_tp_fp(*found, stat, iou)
    counts.eval_final_results(stat, chosen.model_dir, False)


if __name__ == "__main__":
    main()
