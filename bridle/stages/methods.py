"""Every way to train, in one table: the command line, the Python API, the report and the demo read it.

A new method is a loss (maths/losses.py), a loop (training/), its settings (recipe/), a row here, and its page in docs/.
"""

from bridle.stages.practice import practise
from bridle.stages.preferences import train_dpo, train_offline
from bridle.stages.pretrain import train_pretrain
from bridle.stages.revise import train_revised
from bridle.stages.reward import train_reward
from bridle.stages.rewards import first_critic
from bridle.stages.sft import train_sft
from bridle.stages.workspace import Method
from bridle.training import dpo, grpo, kto, ppo, pretrain, rebel, rejection, reward, rloo, sft

# fmt: off
METHODS = {method.name: method for method in (
    Method("pretrain", "pretrain", "Pretraining a small model on plain text", train_pretrain, pretrain.train),
    Method("sft", "sft", "SFT: teaching the model to answer by imitating demonstrations", train_sft, sft.train),
    Method("reward", "reward", "Training the reward model on the comparisons", train_reward, reward.train),
    Method("ppo", "ppo", "PPO: practising for a higher reward, held near its start by a KL penalty", practise, ppo.train, first_critic),
    Method("dpo", "dpo", "DPO: making the preferred answers of comparisons more likely", train_dpo, dpo.train),
    Method("kto", "kto", "KTO: answers that are called good made more likely, and bad ones less", train_offline, kto.train),
    Method("orpo", "orpo", "ORPO: imitating the preferred answers of comparisons, away from the others", train_offline, dpo.train),
    Method("grpo", "grpo", "GRPO: several answers to each prompt, the better ones reinforced", practise, grpo.train),
    Method("rloo", "rloo", "RLOO: several answers to each prompt, each measured against the mean of the others", practise, rloo.train),
    Method("rebel", "rebel", "REBEL: two answers to each prompt, log-odds that follow their rewards", practise, rebel.train),
    Method("best-of-n", "rejection", "Best of n: imitating its own best answers", practise, rejection.train),
    Method("sl-cai", "constitution", "SL-CAI: imitating its own answers, revised by a constitution", train_revised, sft.train),
)}
# fmt: on
